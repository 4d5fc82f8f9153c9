// Loops over ranges of work on a few threads that are kept between calls.
#pragma once

#include <cstdint>
#include <functional>

namespace gmmkernel {

// Call body(first, last) over pieces of [0, items), each at most `piece` long, on up to `threads` threads; the caller
// is one of them. Pieces are handed out as threads become free, so a delayed thread delays nobody. Safe to call from
// several threads at once and in a forked child. `body` must not throw.
void parallel_for(int64_t items, int64_t piece, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace gmmkernel
