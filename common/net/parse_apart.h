// Parses a message without its large fields, which stay where they are.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "common/base/pieces.h"
#include "common/net/received.h"

namespace moe {

// Where in a kind of message the fields are that are to stay apart. Made once, used by any thread.
class ApartFields {
 public:
  // root: of the whole messages. fields: of type bytes, not repeated; of every kind of message one at most.
  ApartFields(const google::protobuf::Descriptor* root,
              std::span<const google::protobuf::FieldDescriptor* const> fields);

  // What is to be looked at in a message of some kind.
  struct Node {
    // Number of the field that stays apart; 0: none.
    int apart = 0;
    // By number: fields with messages in which there are such.
    std::map<int, std::pair<const google::protobuf::FieldDescriptor*, const Node*>> inner;
  };
  const Node& root() const { return *root_; }

 private:
  const Node* MakeNode(const google::protobuf::Descriptor* kind,
                       std::span<const google::protobuf::FieldDescriptor* const> fields);

  std::map<const google::protobuf::Descriptor*, std::unique_ptr<Node>> nodes_;
  const Node* root_;
};

// Of those fields the ones with `least` bytes or more become payloads, which point into `bytes`; the rest
// is parsed. False if the bytes are no such message.
bool ParseApart(const Pieces& bytes, const ApartFields& fields, size_t least,
                google::protobuf::Message* message, Payloads* payloads);

}  // namespace moe
