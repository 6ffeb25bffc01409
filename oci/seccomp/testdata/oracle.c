/*
 * oracle asks libseccomp what it makes of profiles. It reads commands, one a line, and answers on its output:
 *
 *   begin ACTION                    a new profile with this default
 *   arch TOKEN                      an architecture that it includes; the first is the only native one
 *   rule ACTION NAME N [INDEX OP VALUE VALUETWO]...
 *   end                             answers "ok", the number of bytes and a line feed, and then the program; or "error", why, and a line feed
 *   tree                            the profile begun is to become a tree instead of a list
 *   number TOKEN NAME               answers with the number that a call has there, negative if it has none
 *
 * All numbers are decimal. A call of an architecture that is not included kills the process, as in ours. Rules are added as runc adds them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static scmp_filter_ctx ctx;
static int failed; /* the first error of this profile */
static int archs;

static uint64_t number(void) {
	char *word = strtok(NULL, " \n");
	return word ? strtoull(word, NULL, 10) : 0;
}

static void fail(int rc) {
	if (rc < 0 && !failed)
		failed = rc;
}

static void begin(void) {
	ctx = seccomp_init(number());
	failed = ctx ? 0 : -EINVAL;
	archs = 0;
	if (ctx)
		fail(seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS));
}

static void arch(void) {
	uint32_t token = number();
	int rc;
	if (!ctx)
		return;
	if (!archs++ && token != seccomp_arch_native())
		fail(seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE));
	rc = seccomp_arch_add(ctx, token);
	if (rc != -EEXIST)
		fail(rc);
}

static void rule(void) {
	struct scmp_arg_cmp args[6];
	uint32_t action = number();
	char *name = strtok(NULL, " \n");
	unsigned n = number();
	int call = seccomp_syscall_resolve_name(name);
	for (unsigned i = 0; i < n && i < 6; i++) {
		args[i].arg = number();
		args[i].op = number();
		args[i].datum_a = number();
		args[i].datum_b = number();
	}
	if (ctx && call != __NR_SCMP_ERROR)
		fail(seccomp_rule_add_array(ctx, action, call, n, args));
}

static void end(void) {
	int fd = memfd_create("program", MFD_CLOEXEC);
	if (!failed)
		fail(seccomp_export_bpf(ctx, fd));
	if (failed) {
		printf("error %s\n", strerror(-failed));
	} else {
		char buffer[65536];
		ssize_t n = pread(fd, buffer, sizeof buffer, 0);
		printf("ok %zd\n", n);
		fwrite(buffer, 1, n, stdout);
	}
	close(fd);
	seccomp_release(ctx);
	ctx = NULL;
}

int main(void) {
	static char line[1 << 16];
	while (fgets(line, sizeof line, stdin)) {
		char *command = strtok(line, " \n");
		if (!command)
			continue;
		if (!strcmp(command, "begin"))
			begin();
		else if (!strcmp(command, "arch"))
			arch();
		else if (!strcmp(command, "rule"))
			rule();
		else if (!strcmp(command, "tree") && ctx)
			fail(seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2));
		else if (!strcmp(command, "end"))
			end();
		else if (!strcmp(command, "number")) {
			uint32_t token = number();
			char *name = strtok(NULL, " \n");
			printf("%d\n", seccomp_syscall_resolve_name_arch(token, name));
		}
		fflush(stdout);
	}
	return 0;
}
