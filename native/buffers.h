// Buffers for the large tensors of the kernels, kept for the next call when a tensor dies.
//
// Memory fresh from the system costs a page fault for every page at its first touch, more time than
// the scan itself takes.  torch's allocator for the CPU hands large blocks back at once, so a
// training step would pay that again and again.
#pragma once
#include <cstdint>

namespace spikebridge {

// At least `bytes`, aligned to a page, contents undefined; null when the system has none left.
void* acquire(int64_t bytes);
// The block that starts at `memory`, from `acquire`.
void release(void* memory);

struct BufferUse {
  int64_t live, idle;  // bytes
};
BufferUse buffer_use();
// Hands all idle blocks back to the system.
void release_idle_buffers();
// Idle bytes beyond this go back to the system, the oldest first.
void set_idle_limit(int64_t bytes);
int64_t idle_limit();

}  // namespace spikebridge
