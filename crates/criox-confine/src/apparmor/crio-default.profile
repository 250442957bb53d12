# AppArmor profile of containers that name no other. Written and loaded by criox at its start.
#
# Files, networks and capabilities are the business of mounts, namespaces and capability sets. This profile keeps
# containers away from what those leave open: the kernel's switches in /proc and /sys, mounts, and processes that are
# confined otherwise. There are no includes, so that it loads on nodes without the usual directories.

profile crio-default flags=(attach_disconnected, mediate_deleted) {
  file,
  network,
  capability,
  unix,
  umount,

  # Signals: of the runtime and of whoever is not confined, and among containers.
  signal (receive) peer=unconfined,
  signal (receive) peer={,/usr,/usr/local}{,/bin/,/sbin/}{crun,runc,criox,crio,criox-monitor},
  signal (send, receive) peer=crio-default,

  # Tracing: among containers; whoever is not confined may look in.
  ptrace (read, trace, readby, tracedby) peer=crio-default,
  ptrace (readby, tracedby) peer=unconfined,

  # Nothing is mounted, moved or pivoted: there is no rule that allows it, and here it is said.
  deny mount,
  deny remount,
  deny pivot_root,

  # Files directly in /proc. A process's own directory begins with a digit, self or thread-self.
  deny /proc/* w,
  deny /proc/{acpi,asound,bus,dynamic_debug,fs,irq,scsi,tty}/** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,

  # Parameters: only those of namespaces can be written (net, and kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue).
  deny /proc/sys/[^kfn]** w,
  deny /proc/sys/n[^e]** w,
  deny /proc/sys/f[^s]** w,
  deny /proc/sys/fs/[^m]** w,
  deny /proc/sys/fs/m[^q]** w,
  deny /proc/sys/kernel/[^sm]** w,
  deny /proc/sys/kernel/m[^s]** w,
  deny /proc/sys/kernel/s[^he]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/sys/kernel/se[^m]** w,

  # /sys: nothing but cgroups below fs, which their own mount keeps read-only where it has to.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
