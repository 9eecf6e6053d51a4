#include "common/net/parse_apart.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "glog/logging.h"

namespace moe {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// What a tag's low bits say.
enum WireType { kVarint = 0, kFixed64 = 1, kLength = 2, kFixed32 = 5 };

// A place in a message: fields from the root on, and which of their messages.
using Path = std::vector<std::pair<const FieldDescriptor*, int>>;

struct Found {
  Path path;
  Payloads::Payload payload;
};

class Splitter {
 public:
  Splitter(const Pieces& bytes, size_t least) : reader_(bytes), least_(least) {}

  // The next `length` bytes are a message of that kind.
  bool Split(const ApartFields::Node& node, size_t length) {
    if (length > reader_.left()) return false;
    const size_t end = reader_.left() - length;
    std::map<int, int> count;
    while (reader_.left() > end) {
      const size_t begin = head_.size();
      uint64_t tag = 0;
      if (!CopyVarint(&tag) || tag >> 3 == 0 || tag > UINT32_MAX) return false;
      if ((tag & 7) != kLength) {
        if (!CopyNumber(tag & 7) || reader_.left() < end) return false;
        continue;
      }
      const size_t length_at = head_.size();
      uint64_t size = 0;
      if (!CopyVarint(&size) || reader_.left() < end || size > reader_.left() - end) {
        return false;
      }
      const int number = static_cast<int>(tag >> 3);
      const auto inner = node.inner.find(number);
      if (inner != node.inner.end()) {
        const auto& [field, kind] = inner->second;
        const int index = count[number]++;
        // Nobody who encodes a message writes a part of it twice.
        if (index > 0 && !field->is_repeated()) return false;
        path_.emplace_back(field, index);
        const size_t content_at = head_.size();
        if (!Split(*kind, size)) return false;
        path_.pop_back();
        PutLength(length_at, content_at, head_.size() - content_at);
      } else if (node.apart != 0 && number == node.apart && size >= least_) {
        head_.resize(begin);
        Found& found = found_.emplace_back(Found{path_, {number, {}}});
        reader_.ForEach(size,
                        [&](std::string_view part) { found.payload.bytes.Append(part); });
      } else {
        Copy(size);
      }
    }
    return reader_.left() == end;
  }

  // What isn't apart, as a message of its own.
  const std::string& head() const { return head_; }
  std::vector<Found>& found() { return found_; }

 private:
  void Copy(size_t count) {
    const size_t at = head_.size();
    head_.resize(at + count);
    reader_.Copy(count, &head_[at]);
  }

  bool CopyVarint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (reader_.left() == 0) return false;
      Copy(1);
      const auto byte = static_cast<uint8_t>(head_.back());
      *value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool CopyNumber(uint64_t type) {
    if (type == kVarint) {
      uint64_t ignored = 0;
      return CopyVarint(&ignored);
    }
    const size_t size = type == kFixed64 ? 8 : type == kFixed32 ? 4 : 0;
    // Groups, which nobody uses.
    if (size == 0 || size > reader_.left()) return false;
    Copy(size);
    return true;
  }

  // In as many bytes as the length had that it replaces, which wasn't smaller.
  void PutLength(size_t begin, size_t end, size_t length) {
    for (size_t i = begin; i < end; ++i, length >>= 7) {
      head_[i] = static_cast<char>((length & 0x7f) | (i + 1 < end ? 0x80 : 0));
    }
  }

  PiecesReader reader_;
  const size_t least_;
  std::string head_;
  Path path_;
  std::vector<Found> found_;
};

// Null if there is no such part.
const Message* PartOf(const Message& message, const Path& path) {
  const Message* part = &message;
  for (const auto& [field, index] : path) {
    const google::protobuf::Reflection& reflection = *part->GetReflection();
    if (field->is_repeated()) {
      if (index >= reflection.FieldSize(*part, field)) return nullptr;
      part = &reflection.GetRepeatedMessage(*part, field, index);
    } else {
      if (!reflection.HasField(*part, field)) return nullptr;
      part = &reflection.GetMessage(*part, field);
    }
  }
  return part;
}

}  // namespace

ApartFields::ApartFields(const Descriptor* root,
                         std::span<const FieldDescriptor* const> fields)
    : root_(MakeNode(root, fields)) {
  CHECK(root_ != nullptr) << root->full_name() << " has none of the fields";
}

const ApartFields::Node* ApartFields::MakeNode(
    const Descriptor* kind, std::span<const FieldDescriptor* const> fields) {
  const auto made = nodes_.find(kind);
  if (made != nodes_.end()) return made->second.get();
  nodes_.emplace(kind, nullptr);
  auto node = std::make_unique<Node>();
  for (const FieldDescriptor* field : fields) {
    if (field->containing_type() == kind) node->apart = field->number();
  }
  for (int i = 0; i < kind->field_count(); ++i) {
    const FieldDescriptor* const field = kind->field(i);
    if (field->message_type() == nullptr) continue;
    const Node* const inner = MakeNode(field->message_type(), fields);
    if (inner != nullptr) node->inner[field->number()] = {field, inner};
  }
  if (node->apart == 0 && node->inner.empty()) node = nullptr;
  return (nodes_[kind] = std::move(node)).get();
}

bool ParseApart(const Pieces& bytes, const ApartFields& fields, size_t least,
                Message* message, Payloads* payloads) {
  Splitter splitter(bytes, least);
  if (!splitter.Split(fields.root(), bytes.size())) return false;
  if (!message->ParseFromString(splitter.head())) return false;
  for (Found& found : splitter.found()) {
    const Message* const part = PartOf(*message, found.path);
    if (part == nullptr) return false;
    payloads->Add(part, std::move(found.payload));
  }
  return true;
}

}  // namespace moe
