#include "common/codec/increment.h"

#include <xxhash.h>

#include "common/check.h"

namespace ps::codec {

static_assert(std::endian::native == std::endian::little);

void HeldHash::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

HeldHash::HeldHash() : state_(XXH3_createState()) {
  PS_CHECK(state_ != nullptr, "no memory for a hash");
  XXH3_64bits_reset(state_.get());
}

void HeldHash::Add(std::span<const std::uint16_t> held) {
  XXH3_64bits_update(state_.get(), held.data(), held.size_bytes());
}

std::uint64_t HeldHash::Digest() const { return XXH3_64bits_digest(state_.get()); }

}  // namespace ps::codec
