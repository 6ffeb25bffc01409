/*
 * The bound: a container's program, run by the least that can run it. It makes exactly the system calls that Vitrine's
 * executor makes for the same spec, with nothing around them: no Go, no monitor, no protocol, no hiding of memory. What a
 * container of ours costs above this is our own.
 *
 *	bound PROGRAM CGROUP 3>report 4<start 5<rootfs 6<...
 *	bound serve ROOTFS CGROUP FILE... <orders >answers
 *
 * PROGRAM is an encoded program (internal/step/encode.go has the layout), CGROUP the directory that the container is
 * born in. Descriptors are as programs know them: 3 and 4 the two pipes, 5 and up the program's table. The exit code is the
 * container's, 128 and the signal if it was killed, and 125 where the bound itself was at fault.
 *
 * The second form is the yardstick for time: it stays, as a monitor does, and carries out one order after the other (struct
 * order). Each container is born in a new cgroup below CGROUP, from a new copy of the mount of ROOTFS, and is waited for. The time
 * in the answer begins before the first of these and ends after the last: what is measured has no execve of the bound itself,
 * no reading of a program, and nobody who is asked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CONST, ADDR, REG, MEM8, MEM32, MEM64 };
enum { EXPECT = 0x10000, SET, NONE = 0xff, REPORT = 63, REPEATS = 10000 };

struct header {
	uint32_t magic;
	uint16_t version, arch;
	uint32_t size, steps, data, data_len, relocs, nrelocs, names, names_len, files;
	int32_t wait;
	uint64_t clone;
};

struct branch {
	uint16_t err, skip;
};

struct step {
	uint32_t nr;
	uint8_t result, kind[6], branches;
	uint16_t then, name_len;
	uint64_t arg[6];
	struct branch on[4];
	uint32_t name, pad;
};

struct clone_args_v2 {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

static uint64_t regs[64];

static void die(const char *what)
{
	perror(what);
	_exit(125);
}

/* The monitor's mount namespace, as far as programs use it. */
static void tiny_root(void)
{
	const char *at = "/proc"; /* any directory that is there */

	if (mount("", "/", "", MS_REC | MS_PRIVATE, NULL))
		die("make mounts private");
	if (mount("vitrine", at, "tmpfs", 0, "mode=0755,size=4096,nr_inodes=8"))
		die("mount tmpfs");
	umask(0);
	if (chdir(at) || mkdir("root", 0755) || mkdir("empty", 0555) || mknod("null", S_IFCHR | 0666, makedev(1, 3)))
		die("furnish root");
	if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		die("pivot_root");
	if (mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL))
		die("make root read-only");
}

static uint64_t value(uint8_t kind, uint64_t v, char *data)
{
	switch (kind) {
	case ADDR: return (uint64_t)(data + v);
	case REG: return regs[v];
	case MEM8: return *(uint8_t *)(data + v);
	case MEM32: return *(uint32_t *)(data + v);
	case MEM64: return *(uint64_t *)(data + v);
	}
	return v;
}

static long call(uint32_t nr, const uint64_t *a)
{
	long r;

	register uint64_t r10 __asm__("r10") = a[3];
	register uint64_t r8 __asm__("r8") = a[4];
	register uint64_t r9 __asm__("r9") = a[5];
	__asm__ volatile("syscall" : "=a"(r) : "0"((uint64_t)nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}

static long perform(const struct step *s, char *data)
{
	uint64_t a[6];
	long r;

	for (int i = 0; i < 6; i++)
		a[i] = value(s->kind[i], s->arg[i], data);
	if (s->nr == SET)
		return a[0];
	if (s->nr == EXPECT)
		return (a[0] & a[3]) == a[1] ? 0 : -(long)a[2];
	for (int i = 0; (r = call(s->nr, a)) == -EAGAIN && s->nr == SYS_openat2 && i < REPEATS; i++)
		;
	return r;
}

static void run(const struct step *steps, int n, char *data)
{
	regs[REPORT] = 3;
	for (int i = 0; i < n;) {
		const struct step *s = &steps[i];
		long r = perform(s, data);
		int skip = -1;

		if (s->result != NONE)
			regs[s->result] = r;
		if (r >= 0 || r < -4095)
			skip = s->then;
		for (int b = 0; skip < 0 && b < s->branches; b++)
			if (s->on[b].err == -r)
				skip = s->on[b].skip;
		if (skip < 0) {
			int32_t record[2] = { i, (int32_t)-r };

			if (write((int)regs[REPORT], record, sizeof record) < 0)
				_exit(126);
			_exit(127);
		}
		i += 1 + skip;
	}
	_exit(127);
}

static struct header *load(const char *path)
{
	struct stat st;
	struct header *h;
	uint32_t *reloc;
	char *b;
	int file;

	if ((file = open(path, O_RDONLY | O_CLOEXEC)) < 0 || fstat(file, &st))
		die("open program");
	b = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (b == MAP_FAILED)
		die("map program");
	close(file);
	h = (struct header *)b;
	if (h->magic != 0x47525056 || h->version != 1 || h->size != st.st_size || sizeof(struct step) != 88 || sizeof *h != 56)
		_exit(125);
	reloc = (uint32_t *)(b + h->relocs);
	for (uint32_t i = 0; i < h->nrelocs; i++)
		*(uint64_t *)(b + h->data + reloc[2 * i]) = (uint64_t)(b + h->data + reloc[2 * i + 1]);
	return h;
}

static void perform_all(struct header *h)
{
	run((struct step *)((char *)h + sizeof *h), h->steps, (char *)h + h->data);
}

static int birth(const struct header *h, int cgroup)
{
	struct clone_args_v2 a = { .flags = h->clone | 1ULL << 32 | 1ULL << 33, .exit_signal = SIGCHLD, .cgroup = cgroup };

	return syscall(SYS_clone3, &a, sizeof a); /* CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP */
}

static int code_of(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int once(char **argv)
{
	struct header *h = load(argv[1]);
	int cgroup, status, pid;

	if ((cgroup = open(argv[2], O_DIRECTORY | O_CLOEXEC)) < 0)
		die("open cgroup");
	if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS))
		die("unshare");
	tiny_root();
	if ((pid = birth(h, cgroup)) == 0)
		perform_all(h);
	if (pid < 0)
		return errno == ENOMEM ? 124 : 125;
	if (waitpid(pid, &status, 0) != pid)
		die("wait");
	return code_of(status);
}

/* What the yardstick is asked, and what it says. */
struct order {
	uint32_t verb, file;
};

enum { RUN = 'r', KEEP = 'k', EXEC = 'x', FILTER = 'f' };

struct answer {
	int64_t wall, cpu; /* nanoseconds; of a filter its load alone */
	int32_t code, pad;
};

static struct {
	int orders, answers;
	int rootfs, cgroup; /* directories */
	int host, tiny, pids; /* namespaces: mount, mount, pid */
	int report; /* of the child that was born last, read end */
	int kept, home; /* pidfd and cgroup of the container that execs go to */
} place;

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t burnt(void)
{
	struct rusage u[2];
	int64_t us = 0;

	getrusage(RUSAGE_SELF, &u[0]);
	getrusage(RUSAGE_CHILDREN, &u[1]);
	for (int i = 0; i < 2; i++)
		us += (u[i].ru_utime.tv_sec + u[i].ru_stime.tv_sec) * 1000000LL + u[i].ru_utime.tv_usec + u[i].ru_stime.tv_usec;
	return us * 1000;
}

/* Makes a child in another namespace than our own, and comes back. The start is told before the child can ask. */
static int born(struct header *h, int cgroup, int away, int back, int kind, int file)
{
	int report[2], start[2], pid;

	if (pipe2(report, O_CLOEXEC) || pipe2(start, O_CLOEXEC) || write(start[1], "s", 1) != 1)
		die("pipe");
	if (setns(away, kind))
		die("setns");
	if ((pid = birth(h, cgroup)) == 0) {
		if (dup3(report[1], 3, O_CLOEXEC) < 0 || dup3(start[0], 4, O_CLOEXEC) < 0 || dup3(file, 5, O_CLOEXEC) < 0)
			_exit(126);
		perform_all(h);
	}
	if (pid < 0 || setns(back, kind))
		die("clone3");
	close(report[1]);
	close(start[0]);
	close(start[1]);
	place.report = report[0]; /* what nobody hears could not be written */
	return pid;
}

static int reap(int pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		die("wait");
	close(place.report);
	return code_of(status);
}

/* A container, from nothing to nothing; or, with keep, to where it runs. */
static int container(struct header *h, int keep)
{
	const char *name = keep ? "kept" : "run";
	int cgroup, tree, pid, code;

	if (mkdirat(place.cgroup, name, 0755) || (cgroup = openat(place.cgroup, name, O_DIRECTORY | O_CLOEXEC)) < 0)
		die("make cgroup");
	if ((tree = syscall(SYS_open_tree, place.rootfs, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)) < 0)
		die("copy mount of rootfs");
	pid = born(h, cgroup, place.tiny, place.host, CLONE_NEWNS, tree);
	close(tree);
	if (keep) {
		place.home = cgroup;
		place.kept = syscall(SYS_pidfd_open, pid, 0);
		return place.kept < 0;
	}
	code = reap(pid);
	close(cgroup);
	while (unlinkat(place.cgroup, name, AT_REMOVEDIR))
		if (errno != EBUSY)
			die("remove cgroup");
	return code;
}

static int exec(struct header *h)
{
	return reap(born(h, place.home, place.kept, place.pids, CLONE_NEWPID, place.kept));
}

/* Loads a filter in a child and says how long the kernel took for it. */
static int filter(const char *path, int64_t *took)
{
	struct sock_fprog f;
	struct stat st;
	int file = open(path, O_RDONLY | O_CLOEXEC), pid;
	int64_t *shared = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (file < 0 || fstat(file, &st) || shared == MAP_FAILED)
		die("open filter");
	f.len = st.st_size / sizeof *f.filter;
	f.filter = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
	place.report = -1;
	if ((pid = fork()) == 0) {
		int64_t begin;

		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
			_exit(1);
		begin = now();
		if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &f))
			_exit(1);
		*shared = now() - begin;
		_exit(0);
	}
	pid = reap(pid);
	*took = *shared;
	munmap(shared, 8);
	munmap(f.filter, st.st_size);
	close(file);
	return pid;
}

/* A mount namespace of our own beside the one we stay in; the pod's other namespaces are simply ours. */
static void settle(const char *rootfs, const char *cgroup)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int fd = 3; fd < 6; fd++) /* what a program knows by number is never anything else of ours */
		if (dup3(null, fd, O_CLOEXEC) < 0 && errno != EINVAL)
			die("dup3");
	place.orders = fcntl(0, F_DUPFD_CLOEXEC, 6);
	place.answers = fcntl(1, F_DUPFD_CLOEXEC, 6);
	if (dup2(3, 0) < 0 || dup2(3, 1) < 0)
		die("dup2");
	place.rootfs = open(rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC);
	place.cgroup = open(cgroup, O_DIRECTORY | O_CLOEXEC);
	place.host = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	place.pids = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS))
		die("unshare");
	place.tiny = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (place.rootfs < 0 || place.cgroup < 0 || place.host < 0 || place.pids < 0 || place.tiny < 0)
		die("open");
	tiny_root();
	if (setns(place.host, CLONE_NEWNS))
		die("setns");
}

static int serve(int files, char **file)
{
	struct header *program[16] = { 0 };
	struct order o;

	umask(022);
	while (read(place.orders, &o, sizeof o) == sizeof o) {
		struct answer a = { 0 };
		int64_t wall, cpu;

		if (o.file >= (uint32_t)files || o.file >= 16)
			return 125;
		if (o.verb != FILTER && !program[o.file])
			program[o.file] = load(file[o.file]);
		cpu = burnt();
		wall = now();
		switch (o.verb) {
		case RUN: case KEEP:
			a.code = container(program[o.file], o.verb == KEEP);
			break;
		case EXEC:
			a.code = exec(program[o.file]);
			break;
		case FILTER:
			a.code = filter(file[o.file], &a.wall);
			break;
		default:
			return 125;
		}
		if (o.verb != FILTER)
			a.wall = now() - wall;
		a.cpu = burnt() - cpu;
		if (write(place.answers, &a, sizeof a) != sizeof a)
			return 125;
	}
	if (place.kept) { /* the first process of its pid namespace takes the others with it */
		syscall(SYS_pidfd_send_signal, place.kept, SIGKILL, NULL, 0);
		wait(NULL);
		unlinkat(place.cgroup, "kept", AT_REMOVEDIR);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 4 && !strcmp(argv[1], "serve")) {
		settle(argv[2], argv[3]);
		return serve(argc - 4, argv + 4);
	}
	return argc == 3 ? once(argv) : 125;
}
