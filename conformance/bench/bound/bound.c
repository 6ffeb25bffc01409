/*
 * The bound: a container's program, run by the least that can run it. It makes exactly the system calls that Vitrine's
 * executor makes for the same spec, with nothing around them: no Go, no monitor, no protocol, no hiding of memory. What a
 * container of ours costs above this is our own.
 *
 *	bound PROGRAM CGROUP 3>report 4<start 5<rootfs 6<...
 *
 * PROGRAM is an encoded program (internal/step/encode.go has the layout), CGROUP the directory that the container is
 * born in. Descriptors are as programs know them: 3 and 4 the two pipes, 5 and up the program's table. The exit code is the
 * container's, 128 and the signal if it was killed, and 125 where the bound itself was at fault.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
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

	if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS))
		die("unshare");
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

int main(int argc, char **argv)
{
	struct stat st;
	struct header *h;
	char *b;
	uint32_t *reloc;
	int file, cgroup, status;
	long pid;

	if (argc != 3)
		return 125;
	if ((file = open(argv[1], O_RDONLY | O_CLOEXEC)) < 0 || fstat(file, &st))
		die("open program");
	if ((cgroup = open(argv[2], O_DIRECTORY | O_CLOEXEC)) < 0)
		die("open cgroup");
	b = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (b == MAP_FAILED)
		die("map program");
	h = (struct header *)b;
	if (h->magic != 0x47525056 || h->version != 1 || h->size != st.st_size || sizeof(struct step) != 88 || sizeof *h != 56)
		return 125;
	reloc = (uint32_t *)(b + h->relocs);
	for (uint32_t i = 0; i < h->nrelocs; i++)
		*(uint64_t *)(b + h->data + reloc[2 * i]) = (uint64_t)(b + h->data + reloc[2 * i + 1]);
	tiny_root();

	struct clone_args_v2 a = { .flags = h->clone | 1ULL << 32 | 1ULL << 33, .exit_signal = SIGCHLD, .cgroup = cgroup };
	pid = syscall(SYS_clone3, &a, sizeof a); /* CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP */
	if (pid == 0)
		run((struct step *)(b + sizeof *h), h->steps, b + h->data);
	if (pid < 0)
		return errno == ENOMEM ? 124 : 125;
	if (waitpid(pid, &status, 0) != pid)
		die("wait");
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
