// A message as it came: its rows of numbers may still lie where the network put them, apart from the
// message, so that they are copied once, to where they are needed.
#pragma once

#include <google/protobuf/message.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "common/base/pieces.h"

namespace moe {

// Bytes of a message that aren't in it; of each part of the message, of one of its fields at most.
class Payloads {
 public:
  struct Payload {
    int field = 0;  // its number
    Pieces bytes;
  };

  bool empty() const { return payloads_.empty(); }
  size_t size() const {
    size_t bytes = 0;
    for (const auto& [part, payload] : payloads_) bytes += payload.bytes.size();
    return bytes;
  }
  // part: of the message, or what is in it, whose address stays the same when it is moved.
  void Add(const google::protobuf::Message* part, Payload payload) {
    payloads_[part] = std::move(payload);
  }
  // Null if the message has all that it says about that part.
  const Payload* Find(const google::protobuf::Message& part) const {
    const auto found = payloads_.find(&part);
    return found == payloads_.end() ? nullptr : &found->second;
  }
  // field: of the part, as it is in the message; it must outlive the result.
  Pieces Of(const google::protobuf::Message& part, const std::string& field) const {
    const Payload* const payload = Find(part);
    return payload == nullptr ? Pieces(field) : payload->bytes;
  }

 private:
  std::map<const google::protobuf::Message*, Payload> payloads_;
};

// Movable. The payloads lie in `bytes`.
template <typename M>
struct Received {
  Received() = default;
  // One that has everything in itself.
  Received(M all) : message(std::move(all)) {}  // NOLINT: implicit

  size_t size() const { return message.ByteSizeLong() + payloads.size(); }

  M message;
  Payloads payloads;
  std::shared_ptr<const void> bytes;
};

}  // namespace moe
