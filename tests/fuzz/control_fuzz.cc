// A control message from a stranger. What decodes must encode and decode again; a layout in it is
// whole or refused.
#include <cstdint>

#include "common/check.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto decoded =
      ps::control::Decode(std::span(reinterpret_cast<const std::byte*>(data), size));
  if (!decoded.ok()) return 0;
  const auto again = ps::control::Decode(ps::control::Encode(decoded.value()));
  PS_CHECK(again.ok(), ps::control::BodyName(decoded.value()));
  PS_CHECK(again->body.type == decoded->body.type, ps::control::BodyName(again.value()));
  if (const auto* const start = decoded->body.AsJobStart(); start != nullptr && start->layout) {
    (void)ps::LayoutView::Create(*start->layout, 3);
  }
  return 0;
}
