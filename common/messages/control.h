// Encoding and verified decoding of control messages (control.fbs).
//
// The object API is used throughout: control::MessageT is a plain struct tree.
// Decode runs the FlatBuffers verifier with bounded depth and table count first,
// so bytes from a socket are safe to hand in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "control_generated.h"

namespace ps::control {

inline constexpr std::size_t kMaxMessageBytes = std::size_t{64} << 20;

std::vector<std::byte> Encode(const MessageT& message);

// kInvalid with the reason if the bytes are not a valid message with a body.
Result<MessageT> Decode(std::span<const std::byte> bytes);

// Make(PingT{...}, task): a message around one body.
template <typename BodyT>
MessageT Make(BodyT body, std::uint64_t task = 0, std::uint64_t leader_epoch = 0) {
  MessageT message;
  message.task = task;
  message.leader_epoch = leader_epoch;
  message.body.Set(std::move(body));
  return message;
}

// A deep copy; the object API's structs own their parts and do not copy by themselves.
template <typename NativeT>
NativeT Clone(const NativeT& value) {
  flatbuffers::FlatBufferBuilder builder(512);
  builder.Finish(NativeT::TableType::Pack(builder, &value));
  NativeT copy;
  flatbuffers::GetRoot<typename NativeT::TableType>(builder.GetBufferPointer())->UnPackTo(&copy);
  return copy;
}

template <typename NativeT>
std::unique_ptr<NativeT> ClonePtr(const NativeT& value) {
  return std::make_unique<NativeT>(Clone(value));
}

// "RegisterServer", for logs.
const char* BodyName(const MessageT& message);

}  // namespace ps::control
