#include "tests/hostile/random_message.h"

#include <array>
#include <cmath>
#include <limits>

namespace moe::hostile {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int kMostDepth = 6;
constexpr size_t kMostRepeated = 4;

double OddDouble(Random& random) {
  constexpr std::array<double, 9> kOdd = {0,
                                          -1,
                                          0.5,
                                          1e300,
                                          -1e300,
                                          5e-324,
                                          std::numeric_limits<double>::quiet_NaN(),
                                          std::numeric_limits<double>::infinity(),
                                          -std::numeric_limits<double>::infinity()};
  return kOdd[Pick(random, kOdd.size())];
}

// Of a bytes field: what may be numbers.
std::string OddBytes(Random& random) {
  const size_t size = Pick(random, 20) == 0 ? Pick(random, 1 << 20) : Pick(random, 300);
  return Pick(random, 3) == 0 ? std::string(size, '\0') : RandomBytes(random, size);
}

class Filler {
 public:
  explicit Filler(Random& random) : random_(random) {}

  void Fill(Message* message, int depth) {
    const auto& descriptor = *message->GetDescriptor();
    for (int i = 0; i < descriptor.field_count(); ++i) {
      const FieldDescriptor* field = descriptor.field(i);
      if (Pick(random_, 4) == 0) continue;
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && depth == kMostDepth) {
        continue;
      }
      const size_t count = field->is_repeated() ? Pick(random_, kMostRepeated + 1) : 1;
      for (size_t c = 0; c < count; ++c) Set(message, field, depth);
    }
  }

 private:
  void Set(Message* message, const FieldDescriptor* field, int depth) {
    const Reflection& r = *message->GetReflection();
    const bool repeated = field->is_repeated();
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return Fill(
            repeated ? r.AddMessage(message, field) : r.MutableMessage(message, field),
            depth + 1);
      case FieldDescriptor::CPPTYPE_STRING: {
        std::string value = field->type() == FieldDescriptor::TYPE_BYTES
                                ? OddBytes(random_)
                                : OddName(random_);
        return repeated ? r.AddString(message, field, std::move(value))
                        : r.SetString(message, field, std::move(value));
      }
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return repeated ? r.AddDouble(message, field, OddDouble(random_))
                        : r.SetDouble(message, field, OddDouble(random_));
      case FieldDescriptor::CPPTYPE_FLOAT:
        return repeated
                   ? r.AddFloat(message, field, static_cast<float>(OddDouble(random_)))
                   : r.SetFloat(message, field, static_cast<float>(OddDouble(random_)));
      case FieldDescriptor::CPPTYPE_INT32:
        return repeated ? r.AddInt32(message, field, static_cast<int32_t>(Number()))
                        : r.SetInt32(message, field, static_cast<int32_t>(Number()));
      case FieldDescriptor::CPPTYPE_INT64:
        return repeated ? r.AddInt64(message, field, static_cast<int64_t>(Number()))
                        : r.SetInt64(message, field, static_cast<int64_t>(Number()));
      case FieldDescriptor::CPPTYPE_UINT32:
        return repeated ? r.AddUInt32(message, field, static_cast<uint32_t>(Number()))
                        : r.SetUInt32(message, field, static_cast<uint32_t>(Number()));
      case FieldDescriptor::CPPTYPE_UINT64:
        return repeated ? r.AddUInt64(message, field, Number())
                        : r.SetUInt64(message, field, Number());
      case FieldDescriptor::CPPTYPE_BOOL:
        return repeated ? r.AddBool(message, field, Number() % 2 == 1)
                        : r.SetBool(message, field, Number() % 2 == 1);
      case FieldDescriptor::CPPTYPE_ENUM:
        return repeated ? r.AddEnumValue(message, field, static_cast<int>(Number()))
                        : r.SetEnumValue(message, field, static_cast<int>(Number()));
    }
  }

  uint64_t Number() { return OddNumber(random_); }

  Random& random_;
};

}  // namespace

size_t Pick(Random& random, size_t below) { return random() % below; }

std::string RandomBytes(Random& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

std::string OddName(Random& random) {
  constexpr std::array<const char*, 14> kOdd = {
      "worker/w0", "worker/w1",     "server/s0",  "server/s1",     "w0",
      "w9",        "dense/0",       "replica/0",  "layer1/group0", "",
      "/",         "../../etc/x\n", "\xc3\xa9%s", "worker/"};
  const size_t choice = Pick(random, kOdd.size() + 1);
  return choice < kOdd.size() ? kOdd[choice] : std::string(Pick(random, 20000), 'n');
}

uint64_t OddNumber(Random& random) {
  constexpr std::array<uint64_t, 14> kOdd = {0,
                                             1,
                                             2,
                                             3,
                                             4,
                                             7,
                                             100,
                                             4097,
                                             0x7fffffff,
                                             0x80000000,
                                             0xffffffff,
                                             0x100000000,
                                             ~uint64_t{0},
                                             ~uint64_t{0} / 2};
  const size_t choice = Pick(random, kOdd.size() + 1);
  return choice < kOdd.size() ? kOdd[choice] : random();
}

void FillOddly(Random& random, Message* message) { Filler(random).Fill(message, 0); }

}  // namespace moe::hostile
