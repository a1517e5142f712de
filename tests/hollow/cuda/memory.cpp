// Device memory: addresses that the host may not touch, and the bytes behind them at another address. What a kernel may
// have changed reads as zeros: bytes are those that were written since the last launch.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "hollow.h"

namespace {

constexpr size_t kGrain = 512, kPage = 4096;  // an allocation is rounded to the first
using Blocks = std::map<size_t, size_t>;  // bytes by address

struct Memory {
  std::mutex mutex;
  size_t total, now = 0, peak = 0, allocations = 0, frees = 0;
  char *device = nullptr, *bytes = nullptr;
  Blocks blocks;  // by offset
  Blocks pinned;  // by address
  size_t launches = 0;
  struct Written {
    size_t end, launches;
  };
  std::map<size_t, Written> written;  // by offset

  Memory() {
    const char* asked = getenv("HOLLOW_MEMORY_MIB");
    total = (asked ? strtoull(asked, nullptr, 10) : 81559) << 20;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* nobody = mmap(nullptr, total, PROT_NONE, flags, -1, 0);
    void* behind = mmap(nullptr, total, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (nobody == MAP_FAILED || behind == MAP_FAILED) abort();
    device = static_cast<char*>(nobody);
    bytes = static_cast<char*>(behind);
  }
  bool has(const void* pointer) const { return pointer >= device && pointer < device + total; }
  size_t offset(const void* pointer) const { return static_cast<const char*>(pointer) - device; }
  char* behind(const void* pointer) const { return bytes + offset(pointer); }
  // The block that holds an address, or end().
  Blocks::const_iterator find(const void* pointer) const {
    auto next = blocks.upper_bound(offset(pointer));
    if (next == blocks.begin()) return blocks.end();
    auto block = std::prev(next);
    return offset(pointer) < block->first + block->second ? block : blocks.end();
  }
  // Where the bytes of a pointer are, or nullptr for device memory that is not allocated as far as `size`.
  char* reach(const void* pointer, size_t size) const {
    if (!has(pointer)) return static_cast<char*>(const_cast<void*>(pointer));
    auto block = find(pointer);
    if (block == blocks.end()) return nullptr;
    return offset(pointer) + size <= block->first + block->second ? behind(pointer) : nullptr;
  }
  void forget(size_t start, size_t end) {
    auto at = written.lower_bound(start);
    if (at != written.begin() && std::prev(at)->second.end > start) at = std::prev(at);
    while (at != written.end() && at->first < end) {
      auto [from, old] = *at;
      at = written.erase(at);
      if (from < start) written[from] = {start, old.launches};
      if (old.end > end) written[end] = old;
    }
  }
  void note(const void* pointer, size_t size) {
    if (!has(pointer) || !size) return;
    size_t start = offset(pointer);
    forget(start, start + size);
    written[start] = {start + size, launches};
  }
  // Zero the bytes that a kernel may have changed, and those that nobody wrote.
  void settle(const void* pointer, size_t size) {
    if (!has(pointer)) return;
    size_t at = offset(pointer), end = at + size;
    auto next = written.lower_bound(at);
    if (next != written.begin() && std::prev(next)->second.end > at) next = std::prev(next);
    for (; next != written.end() && next->first < end; ++next) {
      size_t from = std::max(at, next->first), to = std::min(end, next->second.end);
      memset(bytes + at, 0, from - at);
      if (next->second.launches != launches) memset(bytes + from, 0, to - from);
      at = to;
    }
    memset(bytes + at, 0, end - at);
  }
};

Memory& memory() {
  static Memory* kept = new Memory;
  return *kept;
}

// Give whole pages back to the system. What is left of the others is not read: nobody wrote it since.
void give_pages_back(char* start, size_t size) {
  auto address = reinterpret_cast<size_t>(start);
  size_t first = (address + kPage - 1) / kPage * kPage, last = (address + size) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

const char* name(hollow::Place place) {
  return place == hollow::Place::device ? "device" : place == hollow::Place::pinned ? "pinned" : "host";
}

}  // namespace

namespace hollow {

size_t total_memory() { return memory().total; }

size_t free_memory() {
  std::lock_guard<std::mutex> held(memory().mutex);
  return memory().total - memory().now;
}

void* take(size_t asked) {
  Memory& m = memory();
  std::lock_guard<std::mutex> held(m.mutex);
  if (asked > m.total) return nullptr;
  size_t size = std::max((asked + kGrain - 1) / kGrain, size_t{1}) * kGrain, at = 0;
  for (auto& [offset, bytes] : m.blocks) {  // the first gap
    if (offset - at >= size) break;
    at = offset + bytes;
  }
  if (at + size > m.total) return nullptr;
  m.blocks[at] = size;
  m.now += size;
  m.peak = std::max(m.peak, m.now);
  m.allocations++;
  return m.device + at;
}

int give(void* pointer) {
  if (!pointer) return kOk;
  Memory& m = memory();
  std::lock_guard<std::mutex> held(m.mutex);
  auto block = m.has(pointer) ? m.find(pointer) : m.blocks.end();
  if (block == m.blocks.end() || m.device + block->first != pointer) return kInvalidValue;
  give_pages_back(m.behind(pointer), block->second);
  m.forget(block->first, block->first + block->second);
  m.now -= block->second;
  m.frees++;
  m.blocks.erase(block);
  return kOk;
}

void memory_seen(size_t* now, size_t* peak, size_t* allocations, size_t* frees, bool reset) {
  Memory& m = memory();
  std::lock_guard<std::mutex> held(m.mutex);
  if (now) *now = m.now, *peak = m.peak, *allocations = m.allocations, *frees = m.frees;
  if (reset) m.peak = m.now, m.allocations = m.frees = 0;
}

int pin(void* pointer, size_t bytes) {
  if (!pointer || !bytes) return kInvalidValue;
  std::lock_guard<std::mutex> held(memory().mutex);
  return memory().pinned.emplace(reinterpret_cast<size_t>(pointer), bytes).second ? kOk : 712;  // already registered
}

int unpin(void* pointer) {
  std::lock_guard<std::mutex> held(memory().mutex);
  return memory().pinned.erase(reinterpret_cast<size_t>(pointer)) ? kOk : 713;  // not registered
}

void* take_pinned(size_t bytes) {
  void* pointer = aligned_alloc(kPage, (std::max(bytes, size_t{1}) + kPage - 1) / kPage * kPage);
  if (pointer) pin(pointer, std::max(bytes, size_t{1}));
  return pointer;
}

int give_pinned(void* pointer) {
  if (!pointer) return kOk;
  if (unpin(pointer)) return kInvalidValue;
  free(pointer);
  return kOk;
}

Place place(const void* pointer) {
  Memory& m = memory();
  if (m.has(pointer)) return Place::device;
  std::lock_guard<std::mutex> held(m.mutex);
  auto next = m.pinned.upper_bound(reinterpret_cast<size_t>(pointer));
  if (next == m.pinned.begin()) return Place::host;
  auto block = std::prev(next);
  return reinterpret_cast<size_t>(pointer) < block->first + block->second ? Place::pinned : Place::host;
}

bool block_of(const void* pointer, void** base, size_t* bytes) {
  Memory& m = memory();
  std::lock_guard<std::mutex> held(m.mutex);
  auto block = m.has(pointer) ? m.find(pointer) : m.blocks.end();
  if (block == m.blocks.end()) return false;
  if (base) *base = m.device + block->first;
  if (bytes) *bytes = block->second;
  return true;
}

void may_change() {
  std::lock_guard<std::mutex> held(memory().mutex);
  memory().launches++;
}

int copy_now(void* to, const void* from, size_t bytes) {
  if (!bytes) return kOk;
  Memory& m = memory();
  const char *source_place = name(place(from)), *target_place = name(place(to));
  {
    std::lock_guard<std::mutex> held(m.mutex);
    char *target = m.reach(to, bytes), *source = m.reach(from, bytes);
    if (!target || !source) return kInvalidValue;
    m.settle(from, bytes);
    memmove(target, source, bytes);
    m.note(to, bytes);
  }
  copied(source_place, target_place, bytes);
  return kOk;
}

int fill_now(void* to, int value, size_t count, size_t width) {
  Memory& m = memory();
  std::lock_guard<std::mutex> held(m.mutex);
  char* target = m.reach(to, count * width);
  if (!target) return kInvalidValue;
  m.note(to, count * width);
  if (width == 1) memset(target, value, count);
  else
    for (size_t i = 0; i < count; i++) memcpy(target + i * width, &value, width);
  return kOk;
}

}  // namespace hollow
