// A checksum over what a message says, whichever way it lies in memory or on the wire. TCP's own has 16
// bits, and hosts between may spoil data before they compute it.
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/net/received.h"

namespace moe {

// CRC-32C over the fields that are set, with their numbers, in the order of these; without `except`
// of the message itself, and without fields that this program doesn't know. Takes the time of reading
// the message once. payloads: of the message.
uint32_t ChecksumOf(const google::protobuf::Message& message, int except,
                    const Payloads& payloads = Payloads());

// Message: has a field `checksum` of type fixed32.
template <typename Message>
void Seal(Message* message) {
  message->set_checksum(ChecksumOf(*message, Message::kChecksumFieldNumber));
}
// DATA_LOSS unless the message is as it was when it was sealed.
template <typename Message>
absl::Status CheckSeal(const Message& message, const Payloads& payloads = Payloads()) {
  const uint32_t checksum = ChecksumOf(message, Message::kChecksumFieldNumber, payloads);
  if (checksum == message.checksum()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("a message was damaged on its way: its checksum is ",
                   absl::Hex(checksum, absl::kZeroPad8), ", its sender's was ",
                   absl::Hex(message.checksum(), absl::kZeroPad8)));
}

}  // namespace moe
