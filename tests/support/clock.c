/* A wall clock that can be set while a process runs: cc -shared -fPIC -O2 -o clock.so clock.c, then LD_PRELOAD=clock.so.
 *
 * CLOCK_FILE names a file of eight bytes: by how many nanoseconds the wall clock is ahead. It is mapped, so that a change is
 * seen at once. Monotonic clocks stay what they are, and so does the kernel's own clock: deadlines by the wall clock
 * (condition variables of MariaDB) are moved back before they are handed to it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t second_ns = 1000000000;
static const int64_t zero = 0;
static const volatile int64_t *ahead_ns = &zero;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
  real_cond_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (!real_cond_timedwait) real_cond_timedwait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  const char *path = getenv("CLOCK_FILE");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) ahead_ns = mapped;
}

static void move(struct timespec *at, int64_t by_ns) {
  int64_t ns = at->tv_sec * second_ns + at->tv_nsec + by_ns;
  at->tv_sec = ns / second_ns;
  at->tv_nsec = ns % second_ns;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = real_clock_gettime ? real_clock_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) move(now, *ahead_ns);
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec precise;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *result) {
  struct timespec precise;
  if (clock_gettime(CLOCK_REALTIME, &precise)) return (time_t)-1;
  if (result) *result = precise.tv_sec;
  return precise.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
  return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
  struct timespec moved = *until;
  /* A deadline of the monotonic clock counts seconds since the machine's start. */
  if (until->tv_sec > second_ns) move(&moved, -*ahead_ns);
  return real_cond_timedwait ? real_cond_timedwait(condition, mutex, &moved) : EINVAL;
}
