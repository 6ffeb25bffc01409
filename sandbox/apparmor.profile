# What containers of Vitrine run under where AppArmor is on and their request names nothing else. It is a second fence: the first
# are namespaces, capabilities, the seccomp filter, and what is masked and read-only in /proc and /sys.
abi <abi/3.0>,

profile vitrine-default flags=(attach_disconnected, mediate_deleted) {
  file,
  network,
  capability,
  umount,

  # Containers of one kind may share a PID namespace, and a debug container looks into its target.
  signal (send, receive) peer=vitrine-default,
  signal (receive) peer=unconfined,
  ptrace (read, readby, trace, tracedby) peer=vitrine-default,

  # A new mount of /proc or /sys would show what is masked.
  deny mount,

  # Windows into the kernel, for those that have them in sight.
  deny /proc/{kcore,keys,kmem,kpagecgroup,kpagecount,kpageflags,latency_stats,mem,sched_debug,timer_list} rwklx,
  deny /proc/{acpi,asound,bus,driver,dynamic_debug,fs,irq,scsi,tty}/** wklx,
  deny /proc/{mtrr,slabinfo,sysrq-trigger} wklx,

  # Settings that are the whole machine's. Those of the container's own namespaces are kernel/{msg,sem,shm}*, fs/mqueue and net.
  deny /proc/sys/{abi,crypto,debug,dev,sunrpc,user,vm}/** wklx,
  deny /proc/sys/fs/{[^m]**,m[^q]**} wklx,
  deny /proc/sys/kernel/{[^ms]**,m[^s]**,s[^eh]**} wklx,

  deny /sys/{block,bus,class,dev,devices,firmware,hypervisor,kernel,module,power}/** wklx,
  deny /sys/fs/{[^c]**,c[^g]**} wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/{debug,security,tracing}/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
