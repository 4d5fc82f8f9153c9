// glibc's word for "this process has one thread", new in 2.32: never, as far as the C++ library linked in here may
// know, so that it always counts references atomically. Not exported.
extern "C" {
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}
