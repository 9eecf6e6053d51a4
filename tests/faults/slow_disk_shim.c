// Loaded into a process before its C library (LD_PRELOAD): writing a shard's file takes the
// milliseconds for each write() that stand in the file that SLOW_DISK names, as on a slow disk. They
// end at once when that file is gone.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// What the disk takes for a write, in milliseconds.
static long delay(void) {
  const char* const path = getenv("SLOW_DISK");
  FILE* const file = path == NULL ? NULL : fopen(path, "re");
  long milliseconds = 0;
  if (file == NULL) return 0;
  if (fscanf(file, "%ld", &milliseconds) != 1) milliseconds = 0;
  fclose(file);
  return milliseconds;
}

static int of_a_shard(int fd) {
  char link[64], name[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, name, sizeof name - 1);
  if (length < 0) return 0;
  name[length] = '\0';
  return strstr(name, ".safetensors.tmp") != NULL;
}

ssize_t write(int fd, const void* bytes, size_t count) {
  static ssize_t (*real)(int, const void*, size_t);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "write");
  if (of_a_shard(fd)) {
    const struct timespec a_little = {0, 5 * 1000 * 1000};
    for (long waited = 0; waited < delay(); waited += 5) nanosleep(&a_little, NULL);
  }
  return real(fd, bytes, count);
}
