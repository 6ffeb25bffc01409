/*
 * The OCI runtime beside this program, told of no limits: crun refuses to start with limits that the hierarchy has no
 * controllers for, and containerd always sets some. What must go is overwritten with spaces in the bundle's
 * config.json before a container is created, and "crun" in the directory of this program is executed with the same arguments.
 *
 * Static and small, since it runs before each call of crun that is measured: all that it costs is one execve.
 * A file "nodevices" there takes the device rules away, too.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[1 << 20];

/* blank overwrites a member of an object, by its beginning, and one of the commas around it. */
static void blank(char *from, const char *member, char open, char close)
{
	char *begin = strstr(from, member), *end;
	int depth = 0;

	if (!begin)
		return;
	end = strchr(begin, open);
	do {
		if (*end == open)
			depth++;
		else if (*end == close)
			depth--;
		end++;
	} while (depth > 0 && *end);
	if (*end == ',')
		end++;
	else if (begin[-1] == ',')
		begin--;
	memset(begin, ' ', end - begin);
}

static void edit(const char *bundle, int devices)
{
	char path[PATH_MAX], *resources;
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "%s/config.json", bundle);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || (size = read(fd, text, sizeof(text) - 1)) < 0) {
		perror(path);
		exit(1);
	}
	resources = strstr(text, "\"resources\":{");
	if (resources) {
		blank(resources, "\"cpu\":{", '{', '}');
		blank(resources, "\"memory\":{", '{', '}');
		blank(resources, "\"pids\":{", '{', '}');
		if (!devices)
			blank(resources, "\"devices\":[{\"allow\"", '[', ']');
	}
	if (pwrite(fd, text, size, 0) != size) {
		perror(path);
		exit(1);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	char crun[PATH_MAX], mark[PATH_MAX];
	int i, dir = (int)(strrchr(argv[0], '/') - argv[0]);

	snprintf(crun, sizeof(crun), "%.*s/crun", dir, argv[0]);
	snprintf(mark, sizeof(mark), "%.*s/nodevices", dir, argv[0]);
	for (i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "--bundle"))
			edit(argv[i + 1], access(mark, F_OK) != 0);
	execv(crun, argv);
	perror(crun);
	return 1;
}
