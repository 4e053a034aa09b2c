#include "buffers.h"

#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>
#include <unordered_map>

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace spikebridge {
namespace {

constexpr int64_t kPage = 2 * 1024 * 1024;  // a large page

struct Block {
  void* memory;
  int64_t bytes;
};

void* from_system(int64_t bytes) {
#ifdef __linux__
  // Room for one large page more, so that the block can start on one.
  void* raw = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(raw), first = (begin + kPage - 1) / kPage * kPage;
  if (first > begin) munmap(raw, first - begin);
  const int64_t rest = static_cast<int64_t>(begin + kPage - first);
  if (rest > 0) munmap(reinterpret_cast<void*>(first + bytes), rest);
  madvise(reinterpret_cast<void*>(first), bytes, MADV_HUGEPAGE);
  return reinterpret_cast<void*>(first);
#else
  return std::malloc(bytes);
#endif
}

void to_system(const Block& block) {
#ifdef __linux__
  munmap(block.memory, block.bytes);
#else
  std::free(block.memory);
#endif
}

int64_t default_limit() {
#ifdef __linux__
  const int64_t physical = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return physical / 8;
#else
  return int64_t(1) << 30;
#endif
}

struct Buffers {
  std::mutex lock;
  std::deque<Block> idle;  // the oldest first
  std::unordered_map<void*, int64_t> live;
  int64_t idle_bytes = 0, live_bytes = 0, limit = default_limit();

  void shrink(int64_t to) {
    while (idle_bytes > to && !idle.empty()) {
      idle_bytes -= idle.front().bytes;
      to_system(idle.front());
      idle.pop_front();
    }
  }
};

// Never destroyed: tensors may outlive the module at exit.
Buffers& buffers() {
  static Buffers* only = [] {
#ifdef __linux__
    // A child forked while another thread holds the lock would wait for ever.
    pthread_atfork([] { buffers().lock.lock(); }, [] { buffers().lock.unlock(); },
                   [] { buffers().lock.unlock(); });
#endif
    return new Buffers;
  }();
  return *only;
}

}  // namespace

void* acquire(int64_t bytes) {
  if (bytes > INT64_MAX - 3 * kPage) return nullptr;
  Buffers& b = buffers();
  bytes = (bytes + kPage - 1) / kPage * kPage;
  if (bytes == 0) bytes = kPage;
  const std::lock_guard<std::mutex> held(b.lock);
  // The smallest that is large enough, unless most of it would lie waste.
  auto best = b.idle.end();
  for (auto it = b.idle.begin(); it != b.idle.end(); ++it)
    if (it->bytes >= bytes && it->bytes <= bytes + bytes / 2 &&
        (best == b.idle.end() || it->bytes <= best->bytes))
      best = it;
  Block block{nullptr, bytes};
  if (best != b.idle.end()) {
    block = *best;
    b.idle_bytes -= block.bytes;
    b.idle.erase(best);
  } else {
    block.memory = from_system(bytes);
    if (!block.memory) {  // idle memory may be what is missing
      b.shrink(0);
      block.memory = from_system(bytes);
    }
  }
  if (block.memory) {
    try {
      b.live.emplace(block.memory, block.bytes);
      b.live_bytes += block.bytes;
    } catch (const std::bad_alloc&) {
      to_system(block);
      block.memory = nullptr;
    }
  }
  return block.memory;
}

void release(void* memory) {
  Buffers& b = buffers();
  const std::lock_guard<std::mutex> held(b.lock);
  const auto it = b.live.find(memory);
  if (it != b.live.end()) {
    const Block block{memory, it->second};
    b.live.erase(it);
    b.live_bytes -= block.bytes;
    try {
      b.idle.push_back(block);
      b.idle_bytes += block.bytes;
    } catch (const std::bad_alloc&) {
      to_system(block);
    }
    b.shrink(b.limit);
  }
}

BufferUse buffer_use() {
  Buffers& b = buffers();
  const std::lock_guard<std::mutex> held(b.lock);
  return {b.live_bytes, b.idle_bytes};
}

void set_idle_limit(int64_t bytes) {
  Buffers& b = buffers();
  const std::lock_guard<std::mutex> held(b.lock);
  b.limit = bytes < 0 ? 0 : bytes;
  b.shrink(b.limit);
}

int64_t idle_limit() {
  Buffers& b = buffers();
  const std::lock_guard<std::mutex> held(b.lock);
  return b.limit;
}

void release_idle_buffers() {
  Buffers& b = buffers();
  const std::lock_guard<std::mutex> held(b.lock);
  b.shrink(0);
}

}  // namespace spikebridge
