/* Theory of operation
 *
 * What a tunnel needs rights for, it does before the first packet: attaching to the device, binding, large buffers.
 * From then on it handles what strangers send, and keeps nothing that a fault in doing so could be used for:
 *
 *   isolate()  no capabilities, in any set, and no way to gain some by executing a program. A thread's capabilities
 *              are its own, so this comes before the threads.
 *   fence()    no file but those beside the file of peers, and these to read only; no TCP; no unix socket of the
 *              abstract kind. By Landlock, where the kernel has it (5.13; more of it later: what there is, it says);
 *              also thread by thread. What is open already stays usable. A successor is not fenced in by ours.
 *   confine()  only the system calls of the table below, for all threads at once; any other ends the process.
 *
 * The user stays who he was, so that whoever started the tunnel may look at it and signal it. A file of peers has to be
 * readable by that user as such: root without capabilities cannot read what belongs to others. It is replaced, not
 * rewritten, so what may be read is its directory; if it is a link, that of the file that it leads to at the start, too.
 *
 * Not fenced: signals (a predecessor is sent one once the threads run), and datagrams, which are what it is for.
 */

#include "tunnel.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define ARCHITECTURE AUDIT_ARCH_RISCV64
#else
#define ARCHITECTURE 0 /* not known here: no filter */
#endif

/* What is called after set-up, and by whom. */
static const int allowed_calls[] = {
    SYS_preadv2, SYS_sendmmsg, SYS_sendmsg, SYS_sendto,     /* outward.c, and read() */
    SYS_connect, SYS_getsockopt,                            /* path_mtu() */
    SYS_recvmmsg, SYS_writev,                               /* inward.c */
    SYS_rt_sigtimedwait, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_write, /* main thread: signals, and what it says */
    SYS_openat, SYS_read, SYS_close,                        /* table_load() */
    SYS_tgkill, SYS_getpid, SYS_gettid, SYS_kill,           /* waking threads, and each other */
    SYS_clock_nanosleep, SYS_clock_gettime, SYS_futex, SYS_restart_syscall,
    SYS_exit, SYS_exit_group, SYS_madvise, SYS_munmap,      /* ends, of threads and of all */
};

#define ALLOWED_COUNT (sizeof allowed_calls / sizeof allowed_calls[0])
_Static_assert(ALLOWED_COUNT < 200, "a jump of the filter reaches 255 instructions");

/* isolate() - give up all capabilities for good; Return: whether that worked */
bool isolate(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

    for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; capability++)
        prctl(PR_CAPBSET_DROP, capability); /* refused without CAP_SETPCAP, and then there is little to give up */
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(SYS_capset, &header, none) == 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* As in linux/landlock.h, which older systems do not have; the numbers are the same on all architectures. */
#define CALL_CREATE_RULESET 444
#define CALL_ADD_RULE 445
#define CALL_RESTRICT_SELF 446
#define ASK_VERSION 1u
#define RULE_PATH_BENEATH 1
#define MAY_READ_FILE (UINT64_C(1) << 2)
#define FILE_RIGHTS_OF_1 ((UINT64_C(1) << 13) - 1)
#define MAY_REFER (UINT64_C(1) << 13)     /* version 2 */
#define MAY_TRUNCATE (UINT64_C(1) << 14)  /* 3 */
#define MAY_IOCTL_DEV (UINT64_C(1) << 15) /* 5 */
#define TCP_RIGHTS UINT64_C(3)            /* 4: bind and connect */
#define ABSTRACT_SOCKETS UINT64_C(1)      /* 6 */

struct ruleset {
    uint64_t files, tcp, scopes; /* what is forbidden unless a rule allows it; an older kernel wants zeros at the end */
};

struct path_rule {
    uint64_t allowed;
    int32_t directory;
} __attribute__((packed));

/* allow_beside() - let files of the same directory be read; one that cannot be opened adds nothing */
static void allow_beside(int ruleset, const char *path)
{
    char directory[PATH_MAX] = ".";
    const char *slash = strrchr(path, '/');

    if (slash)
        snprintf(directory, sizeof directory, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    struct path_rule rule = {MAY_READ_FILE, open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC)};
    if (rule.directory < 0)
        return;
    syscall(CALL_ADD_RULE, ruleset, RULE_PATH_BENEATH, &rule, 0);
    close(rule.directory);
}

/* fence() - put this thread, and those that it starts, out of reach of files
 * @peers_path:  the file of peers, which has to stay readable, or NULL
 * @error:       takes ERROR_MAX_BYTES: why not
 *
 * Return: whether it is done, or the kernel does not know how to
 */
bool fence(const char *peers_path, char *error)
{
    long version = syscall(CALL_CREATE_RULESET, NULL, 0, ASK_VERSION);
    char target[PATH_MAX];

    if (version < 1)
        return true;
    struct ruleset rules = {
        .files = FILE_RIGHTS_OF_1 | (version >= 2 ? MAY_REFER : 0) | (version >= 3 ? MAY_TRUNCATE : 0) |
                 (version >= 5 ? MAY_IOCTL_DEV : 0),
        .tcp = version >= 4 ? TCP_RIGHTS : 0,
        .scopes = version >= 6 ? ABSTRACT_SOCKETS : 0,
    };
    int ruleset = (int)syscall(CALL_CREATE_RULESET, &rules, sizeof rules, 0);
    if (ruleset >= 0 && peers_path) {
        allow_beside(ruleset, peers_path);
        if (realpath(peers_path, target))
            allow_beside(ruleset, target);
    }
    bool is_done = ruleset >= 0 && syscall(CALL_RESTRICT_SELF, ruleset, 0) == 0;
    if (!is_done)
        snprintf(error, ERROR_MAX_BYTES, "%s", strerror(errno));
    if (ruleset >= 0)
        close(ruleset);
    return is_done;
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

/* confine() - allow all threads the calls of the table only
 * @error:  takes ERROR_MAX_BYTES: why not
 *
 * Return: whether the filter is in place; without one the tunnel is as good, but its faults would be worse
 */
bool confine(char *error)
{
    struct sock_filter filter[ALLOWED_COUNT + 6];
    size_t length = 0;

    if (ARCHITECTURE == 0) {
        snprintf(error, ERROR_MAX_BYTES, "this architecture is not in its table");
        return false;
    }
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < ALLOWED_COUNT; i++)
        filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed_calls[i],
                                                        (uint8_t)(ALLOWED_COUNT - i), 0);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)length, filter};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0)
        return true;
    snprintf(error, ERROR_MAX_BYTES, "%s", strerror(errno));
    return false;
}
