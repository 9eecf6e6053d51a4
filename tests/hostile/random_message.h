// Messages that a stranger might send: well-formed, with numbers, names and sizes that make no sense.
#pragma once

#include <google/protobuf/message.h>

#include <random>
#include <string>

namespace moe::hostile {

using Random = std::mt19937_64;

// From 0 to `below` - 1.
size_t Pick(Random& random, size_t below);
std::string RandomBytes(Random& random, size_t size);
// A name, a number or a length out of its range, or one that fits by chance.
std::string OddName(Random& random);
uint64_t OddNumber(Random& random);

// Fills some of the fields, and fields of fields.
void FillOddly(Random& random, google::protobuf::Message* message);

}  // namespace moe::hostile
