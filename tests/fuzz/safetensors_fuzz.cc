// A .safetensors file from a stranger. What opens must give every value it says it has.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "ps-worker/engine/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // In memory alone, and it has a path.
  static const int memory = memfd_create("safetensors", 0);
  PS_CHECK(memory >= 0 && ftruncate(memory, 0) == 0, memory);
  PS_CHECK(pwrite(memory, data, size, 0) == static_cast<ssize_t>(size), size);
  const auto file = ps::worker::SafetensorsFile::Open("/proc/self/fd/" + std::to_string(memory));
  if (!file.ok()) return 0;
  for (const auto& entry : file->entries()) {
    std::uint64_t elements = 1;
    for (const std::int64_t extent : entry.shape) elements *= static_cast<std::uint64_t>(extent);
    PS_CHECK(elements == entry.elements && entry.end <= size, entry.elements, entry.end);
    if (!entry.loadable()) continue;
    std::uint64_t next = 0;
    const auto read = file->Read(entry, [&](std::uint64_t first, std::span<const float> values) {
      PS_CHECK(first == next && !values.empty(), first);
      next += values.size();
      for (const float value : values) PS_CHECK(std::isfinite(value), value);
    });
    PS_CHECK(!read.ok() || next == entry.elements, next);
  }
  return 0;
}
