/*
 * Stands in for nginx and httpd: answers every HTTP request with 200 and one small page.
 *
 *   NAME TITLE PORT
 *
 * TITLE is not used: like a real nginx it has to be seen in /proc/PID/cmdline ("master process"). The program's own name
 * goes into the page and the log, and names the file in /var/run that holds the process's number.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void end(int signal) {
  (void)signal;
  _exit(0);
}

static void fail(const char *what) {
  perror(what);
  exit(EXIT_FAILURE);
}

/* IPv6 takes IPv4 too; a pod without IPv6 still gets its server. */
static int listen_on(unsigned short port) {
  const struct sockaddr_in6 both = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
  const struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_ANY)};
  const int on = 1, off = 0;
  int server = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (server >= 0) {
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(server, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(server, (const struct sockaddr *)&both, sizeof both) == 0) goto bound;
    close(server);
  }
  server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (server < 0) fail("socket");
  setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(server, (const struct sockaddr *)&four, sizeof four) != 0) fail("bind");
bound:
  if (listen(server, 128) != 0) fail("listen");
  return server;
}

/* Reads up to the empty line that ends a request's head; what doesn't send one within five seconds gets no answer. */
static int heard(int client) {
  char head[8192];
  size_t length = 0;

  while (length < sizeof head - 1) {
    const ssize_t got = read(client, head + length, sizeof head - 1 - length);
    if (got <= 0) return 0;
    length += (size_t)got;
    head[length] = '\0';
    if (strstr(head, "\r\n\r\n") != NULL || strstr(head, "\n\n") != NULL) return 1;
  }
  return 0;
}

static void answer(int client, const char *name) {
  const struct timeval patience = {.tv_sec = 5};
  char page[256], reply[512];
  int length;

  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  if (!heard(client)) return;
  snprintf(page, sizeof page, "<html><body><h1>%s stand-in: it works</h1></body></html>\n", name);
  length = snprintf(reply, sizeof reply,
                    "HTTP/1.1 200 OK\r\nServer: %s\r\nContent-Type: text/html\r\nContent-Length: %zu\r\n"
                    "Connection: close\r\n\r\n%s", name, strlen(page), page);
  if (write(client, reply, (size_t)length) == length) shutdown(client, SHUT_WR);
  /* A close with bytes unread would reset the connection under the answer. */
  while (read(client, reply, sizeof reply) > 0) continue;
}

int main(int argc, char **argv) {
  const struct sigaction ending = {.sa_handler = end};
  const char *name;
  char path[256];
  FILE *file;
  int server;

  if (argc != 3 || atoi(argv[2]) < 1 || atoi(argv[2]) > 65535) {
    fprintf(stderr, "usage: %s TITLE PORT\n", argv[0]);
    return EXIT_FAILURE;
  }
  name = strrchr(argv[0], '/') != NULL ? strrchr(argv[0], '/') + 1 : argv[0];
  /* As PID 1 it would not even be ended by a signal that it doesn't take. */
  sigaction(SIGTERM, &ending, NULL);
  sigaction(SIGINT, &ending, NULL);
  sigaction(SIGQUIT, &ending, NULL);
  signal(SIGPIPE, SIG_IGN);
  server = listen_on((unsigned short)atoi(argv[2]));
  snprintf(path, sizeof path, "/var/run/%s.pid", name);
  file = fopen(path, "we");
  if (file != NULL) {
    fprintf(file, "%ld\n", (long)getpid());
    fclose(file);
  }
  printf("%s: listening on port %s\n", name, argv[2]);
  fflush(stdout);
  for (;;) {
    const int client = accept(server, NULL, NULL);
    if (client < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      fail("accept");
    }
    answer(client, name);
    close(client);
  }
}
