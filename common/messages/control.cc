#include "common/messages/control.h"

#include <cstring>
#include <memory>

#include "common/error_id.h"

namespace ps::control {

std::vector<std::byte> Encode(const MessageT& message) {
  flatbuffers::FlatBufferBuilder builder(512);
  builder.Finish(Message::Pack(builder, &message));
  const auto* data = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return {data, data + builder.GetSize()};
}

Result<MessageT> Decode(std::span<const std::byte> bytes) {
  if (bytes.size() > kMaxMessageBytes) {
    return Error{ErrorId::kControlMessage, "control message of " + std::to_string(bytes.size()) +
                                               " bytes, at most " +
                                               std::to_string(kMaxMessageBytes)};
  }
  // A received frame may start anywhere; FlatBuffers reads aligned scalars in place.
  std::vector<std::uint64_t> aligned((bytes.size() + 7) / 8);
  if (!bytes.empty()) std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const auto* data = reinterpret_cast<const std::uint8_t*>(aligned.data());
  flatbuffers::Verifier verifier(data, bytes.size(), /*max_depth=*/16, /*max_tables=*/1'000'000);
  if (bytes.size() < 8 || !VerifyMessageBuffer(verifier)) {
    return Error{ErrorId::kControlMessage, "control message of " + std::to_string(bytes.size()) +
                                               " bytes does not pass the verifier"};
  }
  const Message* message = GetMessage(data);
  if (message->body() == nullptr || message->body_type() == Body::NONE) {
    return Error{ErrorId::kControlMessage, "control message without a body"};
  }
  MessageT decoded;
  message->UnPackTo(&decoded);
  if (decoded.body.value == nullptr) {
    return Error{ErrorId::kControlMessage, "control message of an unknown type"};
  }
  return decoded;
}

const char* BodyName(const MessageT& message) { return EnumNameBody(message.body.type); }

}  // namespace ps::control
