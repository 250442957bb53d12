/*
 * The process of a sandbox that wants one: it waits for a signal, and reaps what the pod's other processes leave to it.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) {
  (void)signal;
  _exit(0);
}

static void reap(int signal) {
  (void)signal;
  while (waitpid(-1, NULL, WNOHANG) > 0) continue;
}

int main(void) {
  const struct sigaction ending = {.sa_handler = end};
  const struct sigaction reaping = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};

  if (sigaction(SIGINT, &ending, NULL) != 0 || sigaction(SIGTERM, &ending, NULL) != 0 ||
      sigaction(SIGCHLD, &reaping, NULL) != 0) {
    perror("pause: sigaction");
    return EXIT_FAILURE;
  }
  for (;;) pause();
}
