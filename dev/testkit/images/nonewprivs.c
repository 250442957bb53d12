/*
 * Set-uid root in its image: says with whose rights it really runs.
 */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %u\n", (unsigned)geteuid());
  return 0;
}
