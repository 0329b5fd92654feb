package basebackup

import "syscall"

func changeTime(st *syscall.Stat_t) int64 { return int64(st.Ctim.Sec) }
