// The blocks of a segment from a stranger, as they are: see blocks.h.
#include <cstdint>
#include <span>

#include "tests/fuzz/blocks.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ps::fuzz::CheckBlocks(std::span(reinterpret_cast<const std::byte*>(data), size));
  return 0;
}
