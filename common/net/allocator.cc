#include "common/net/allocator.h"

#include <malloc.h>

#include <limits>

namespace ps::net {

void KeepFreedMemory() {
  // The highest that glibc takes for a mapping of its own; larger frames are still mapped.
  constexpr int kMmapThreshold = 32 << 20;
  mallopt(M_MMAP_THRESHOLD, kMmapThreshold);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

}  // namespace ps::net
