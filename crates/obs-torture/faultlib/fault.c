/* Makes calls of the file system fail in a program that is not changed for it (LD_PRELOAD).
 *
 * FAULT_RULES: rules separated by ';', each CALL:PATH:FIRST:COUNT:ACTION:VALUE. From the FIRSTth
 * call on whose file's path contains PATH, COUNT calls are hit. ACTION is
 *   errno  the call fails with VALUE; a sync also loses what was written since the last one, as a
 *          kernel does that marks pages clean whose writing failed
 *   short  a write writes VALUE bytes at most, and the next one on the file has no space left
 *   delay  the call takes VALUE ms longer
 * FAULT_LOG: a file that gets one line for every sync of a file and every fault.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RULES_MAX 8
#define FDS_MAX 4096

enum action { NONE, ERRNO, SHORT, DELAY };

struct rule {
    char call[16], path[128];
    long first, count, value;
    enum action action;
    atomic_long seen;
};

static struct rule rules[RULES_MAX];
static int rule_count;
static int log_fd = -1;
/* Length of each file at its last sync, and whether its next write finds no space. */
static atomic_long synced[FDS_MAX];
static atomic_int no_space[FDS_MAX];

static void note(const char *call, const char *path, const char *what) {
    if (log_fd < 0) return;
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%s %s %s\n", call, what, path);
    if (n > 0) syscall(SYS_write, log_fd, line, (size_t)n);
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULT_LOG");
    if (path) log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    const char *text = getenv("FAULT_RULES");
    char *copy = text ? strdup(text) : NULL, *rest = copy, *one;
    while (copy && (one = strsep(&rest, ";")) && rule_count < RULES_MAX) {
        struct rule *r = &rules[rule_count];
        char *field[6] = {0};
        for (int i = 0; i < 6; i++) field[i] = strsep(&one, ":");
        if (!field[5]) continue;
        snprintf(r->call, sizeof r->call, "%s", field[0]);
        snprintf(r->path, sizeof r->path, "%s", field[1]);
        r->first = atol(field[2]);
        r->count = atol(field[3]);
        r->action = !strcmp(field[4], "errno") ? ERRNO : !strcmp(field[4], "short") ? SHORT : DELAY;
        r->value = atol(field[5]);
        rule_count++;
    }
    free(copy);
    note("start", "-", "loaded");
}

static const char *path_of(int fd, char *buf) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, buf, PATH_MAX - 1);
    buf[n < 0 ? 0 : n] = 0;
    return buf;
}

/* Returns the rule that hits this call, after waiting if it says so. */
static struct rule *hit(const char *call, const char *path) {
    for (int i = 0; i < rule_count; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->call, call) || !strstr(path, r->path)) continue;
        long n = atomic_fetch_add(&r->seen, 1) + 1;
        if (n < r->first || n >= r->first + r->count) continue;
        note(call, path, "fault");
        if (r->action != DELAY) return r;
        struct timespec t = {r->value / 1000, r->value % 1000 * 1000000};
        nanosleep(&t, NULL);
    }
    return NULL;
}

static int sync_call(const char *name, long number, int fd) {
    char path[PATH_MAX];
    path_of(fd, path);
    struct rule *r = hit(name, path);
    int is_known = fd >= 0 && fd < FDS_MAX;
    if (r) {
        note(name, path, "failed");
        struct stat s;
        if (is_known && !fstat(fd, &s) && S_ISREG(s.st_mode))
            (void)!ftruncate(fd, atomic_load(&synced[fd]));
        errno = (int)r->value;
        return -1;
    }
    struct stat s;
    long len = fstat(fd, &s) ? 0 : s.st_size;
    int result = (int)syscall(number, fd);
    if (!result && is_known) atomic_store(&synced[fd], len);
    note(name, path, result ? "failed" : "ok");
    return result;
}

int fdatasync(int fd) { return sync_call("fdatasync", SYS_fdatasync, fd); }
int fsync(int fd) { return sync_call("fsync", SYS_fsync, fd); }

ssize_t write(int fd, const void *buf, size_t n) {
    if (rule_count && fd > 2 && fd != log_fd) {
        char path[PATH_MAX];
        path_of(fd, path);
        if (fd < FDS_MAX && atomic_exchange(&no_space[fd], 0)) {
            errno = ENOSPC;
            return -1;
        }
        struct rule *r = hit("write", path);
        if (r && r->action == SHORT) {
            if (fd < FDS_MAX) atomic_store(&no_space[fd], 1);
            n = n < (size_t)r->value ? n : (size_t)r->value;
        } else if (r) {
            errno = (int)r->value;
            return -1;
        }
    }
    return syscall(SYS_write, fd, buf, n);
}

static int opened(int fd) {
    struct stat s;
    if (fd >= 0 && fd < FDS_MAX) {
        atomic_store(&synced[fd], fstat(fd, &s) ? 0 : s.st_size);
        atomic_store(&no_space[fd], 0);
    }
    return fd;
}

static int open_call(const char *path, int flags, mode_t mode) {
    struct rule *r = flags & O_CREAT ? hit("create", path) : NULL;
    if (r) {
        errno = (int)r->value;
        return -1;
    }
    return opened((int)syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

#define OPEN(name)                                              \
    int name(const char *path, int flags, ...) {                \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                           \
        return open_call(path, flags, mode);                    \
    }
OPEN(open)
OPEN(open64)

int rename(const char *from, const char *to) {
    struct rule *r = hit("rename", to);
    if (r) {
        errno = (int)r->value;
        return -1;
    }
    return (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
}
