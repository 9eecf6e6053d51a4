#include "common/net/checksum.h"

#include <algorithm>
#include <bit>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/crc32c.h"

namespace moe {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

class Checksum {
 public:
  explicit Checksum(const Payloads& payloads) : payloads_(payloads) {}

  void Add(const Message& message, int except) {
    const Reflection& reflection = *message.GetReflection();
    std::vector<const FieldDescriptor*> fields;
    reflection.ListFields(message, &fields);
    const Payloads::Payload* const payload = payloads_.Find(message);
    if (payload != nullptr) PutInOrder(message, payload->field, &fields);
    for (const FieldDescriptor* field : fields) {
      if (field->number() == except) continue;
      const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
      // No two lists of values look the same: each is preceded by its field and its length.
      AddNumber(uint64_t{static_cast<uint32_t>(field->number())} << 32 |
                static_cast<uint32_t>(count));
      if (payload != nullptr && field->number() == payload->field) {
        AddPayload(payload->bytes);
        continue;
      }
      for (int i = 0; i < count; ++i) AddValue(message, reflection, field, i);
    }
    AddNumber(0);  // the end, which no field looks like
  }

  uint32_t crc() const { return crc_; }

 private:
  void AddNumber(uint64_t number) {
    crc_ = Crc32c({reinterpret_cast<const char*>(&number), sizeof(number)}, crc_);
  }

  // Where ListFields would have it.
  static void PutInOrder(const Message& message, int number,
                         std::vector<const FieldDescriptor*>* fields) {
    const auto place = std::lower_bound(fields->begin(), fields->end(), number,
                                        [](const FieldDescriptor* field, int wanted) {
                                          return field->number() < wanted;
                                        });
    if (place != fields->end() && (*place)->number() == number) return;
    fields->insert(place, message.GetDescriptor()->FindFieldByNumber(number));
  }

  void AddPayload(const Pieces& bytes) {
    AddNumber(bytes.size());
    for (const std::string_view piece : bytes.pieces()) crc_ = Crc32c(piece, crc_);
  }

  void AddValue(const Message& message, const Reflection& reflection,
                const FieldDescriptor* field, int i) {
    const bool repeated = field->is_repeated();
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return Add(repeated ? reflection.GetRepeatedMessage(message, field, i)
                            : reflection.GetMessage(message, field),
                   /*except=*/0);
      case FieldDescriptor::CPPTYPE_STRING: {
        std::string unused;
        const std::string& bytes =
            repeated ? reflection.GetRepeatedStringReference(message, field, i, &unused)
                     : reflection.GetStringReference(message, field, &unused);
        AddNumber(bytes.size());
        crc_ = Crc32c(bytes, crc_);
        return;
      }
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return AddNumber(std::bit_cast<uint64_t>(
            repeated ? reflection.GetRepeatedDouble(message, field, i)
                     : reflection.GetDouble(message, field)));
      case FieldDescriptor::CPPTYPE_FLOAT:
        return AddNumber(std::bit_cast<uint32_t>(
            repeated ? reflection.GetRepeatedFloat(message, field, i)
                     : reflection.GetFloat(message, field)));
      case FieldDescriptor::CPPTYPE_INT32:
        return AddNumber(static_cast<uint64_t>(
            repeated ? reflection.GetRepeatedInt32(message, field, i)
                     : reflection.GetInt32(message, field)));
      case FieldDescriptor::CPPTYPE_INT64:
        return AddNumber(static_cast<uint64_t>(
            repeated ? reflection.GetRepeatedInt64(message, field, i)
                     : reflection.GetInt64(message, field)));
      case FieldDescriptor::CPPTYPE_UINT32:
        return AddNumber(repeated ? reflection.GetRepeatedUInt32(message, field, i)
                                  : reflection.GetUInt32(message, field));
      case FieldDescriptor::CPPTYPE_UINT64:
        return AddNumber(repeated ? reflection.GetRepeatedUInt64(message, field, i)
                                  : reflection.GetUInt64(message, field));
      case FieldDescriptor::CPPTYPE_BOOL:
        return AddNumber(repeated ? reflection.GetRepeatedBool(message, field, i)
                                  : reflection.GetBool(message, field));
      case FieldDescriptor::CPPTYPE_ENUM:
        return AddNumber(static_cast<uint64_t>(
            repeated ? reflection.GetRepeatedEnumValue(message, field, i)
                     : reflection.GetEnumValue(message, field)));
    }
  }

  const Payloads& payloads_;
  uint32_t crc_ = 0;
};

}  // namespace

uint32_t ChecksumOf(const Message& message, int except, const Payloads& payloads) {
  Checksum checksum(payloads);
  checksum.Add(message, except);
  return checksum.crc();
}

}  // namespace moe
