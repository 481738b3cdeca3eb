"""Which system calls a container of the embedded engine may make: a list of the allowed ones.

Data and a pure function that makes the `seccomp` object of config.json of it; knows no container.
Safe anywhere.  Sources: OCI runtime-spec 1.0.2, config-linux.md, "Seccomp"; the set of calls is the
one that docker allows (moby, profiles/seccomp/default.json), less io_uring_*, which is there for
attacks on the kernel far more often than for use.

What is not listed fails with EPERM.  That includes the kernel keyring (add_key, keyctl,
request_key), which is per user and not per container: root in the container could read the keys
that `cisfs unlock` left for root on the host.  Both profiles use this list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

Json = dict[str, object]

_ALLOWED = """
accept accept4 access adjtimex alarm bind brk capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup
dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr
fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents
getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt
get_thread_area gettid gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents
io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat
mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat
_newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64
pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg
recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall
rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity
sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32
setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr
shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn
socketcall socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit
umask uname unlink unlinkat utime utimensat utimensat_time64 utimes vfork vmsplice wait4
waitid waitpid write writev
"""
_WITH_ADMIN = """
bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr
move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog
umount umount2 unshare
"""
ALLOWED = tuple(_ALLOWED.split())
# Beside those, per machine as uname(2) names it.
ALLOWED_ON: Mapping[str, tuple[str, ...]] = {
    "x86_64": ("arch_prctl", "modify_ldt"),
    "aarch64": (
        "arm_fadvise64_64",
        "arm_sync_file_range",
        "breakpoint",
        "cacheflush",
        "set_tls",
        "sync_file_range2",
    ),
    "riscv64": ("riscv_flush_icache",),
}
# Beside those, with a capability that guards them anyway.
ALLOWED_WITH: Mapping[str, tuple[str, ...]] = {
    "CAP_BPF": ("bpf",),
    "CAP_DAC_READ_SEARCH": ("open_by_handle_at",),
    "CAP_PERFMON": ("perf_event_open",),
    "CAP_SYSLOG": ("syslog",),
    "CAP_SYS_ADMIN": tuple(_WITH_ADMIN.split()),
    "CAP_SYS_BOOT": ("reboot",),
    "CAP_SYS_CHROOT": ("chroot",),
    "CAP_SYS_MODULE": ("delete_module", "finit_module", "init_module"),
    "CAP_SYS_NICE": ("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    "CAP_SYS_PACCT": ("acct",),
    "CAP_SYS_PTRACE": ("kcmp", "pidfd_getfd", "process_madvise"),
    "CAP_SYS_RAWIO": ("ioperm", "iopl"),
    "CAP_SYS_TIME": ("clock_settime", "clock_settime64", "settimeofday", "stime"),
    "CAP_SYS_TTY_CONFIG": ("vhangup",),
}
# A filter that knows only the native calls would end the 32-bit programs of a 64-bit image, or, if
# it allows by default, could be walked around through the 32-bit entry.
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
_EPERM, _ENOSYS = 1, 38
_AF_VSOCK = 40  # reaches the hypervisor, and is in no network namespace (before Linux 6.16)
# Every CLONE_NEW... flag of clone(2): a new namespace would bring all capabilities inside it.
_NEW_NAMESPACES = 0x7E020000
# personality(2): PER_LINUX, PER_LINUX32, UNAME26 with each, and the question what it is.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def profile(machine: str, capabilities: Collection[str]) -> Json:
    """Return the `seccomp` object for a container that may hold `capabilities`."""
    names = [*ALLOWED, *ALLOWED_ON.get(machine, ())]
    for capability in sorted(capabilities):
        names += ALLOWED_WITH.get(capability, ())
    rules = [
        _allow(names),
        _allow(["socket"], (0, _AF_VSOCK, "SCMP_CMP_NE")),
        *(_allow(["personality"], (0, value, "SCMP_CMP_EQ")) for value in _PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        # valueTwo is what is compared with, value the mask: 0, no namespace flag at all.
        rules.append(_allow(["clone"], (0, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")))
        # Its flags are in memory, which no filter can read; C libraries then use clone(2).
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": list(ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }


def _allow(names: Sequence[str], condition: tuple[int, int, str] | None = None) -> Json:
    rule: Json = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if condition is not None:
        index, value, comparison = condition
        rule["args"] = [{"index": index, "value": value, "op": comparison}]
    return rule
