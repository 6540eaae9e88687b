// XXH3-128 of a sequence of pieces, as 32 lower-case hex digits. A value, one thread at a time.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "common/check.h"

namespace ps::checkpoint {

class Digester {
 public:
  Digester() : state_(XXH3_createState()) {
    PS_CHECK(state_ != nullptr, "out of memory");
    XXH3_128bits_reset(state_.get());
  }

  void Update(std::span<const std::byte> bytes) {
    if (!bytes.empty()) XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
  }

  // In XXH3's canonical byte order, as `xxh128sum` prints it.
  std::string Hex() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    text.reserve(2 * sizeof(canonical.digest));
    for (const unsigned char byte : canonical.digest) {
      text.push_back(kDigits[byte >> 4]);
      text.push_back(kDigits[byte & 15]);
    }
    return text;
  }

 private:
  struct FreeState {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };

  std::unique_ptr<XXH3_state_t, FreeState> state_;
};

}  // namespace ps::checkpoint
