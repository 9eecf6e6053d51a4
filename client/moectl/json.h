// JSON for scripts. Unlike protobuf's own printer, it writes 64-bit numbers as numbers
// and keeps fields that have their default value.
#pragma once

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <string>

namespace moe {

using Json = nlohmann::ordered_json;

// Fields by their proto names, enums by name; unset messages are left out, NaN and
// infinity null.
Json ToJson(const google::protobuf::Message& message);
// Null if it isn't finite: JSON has no other numbers.
Json JsonNumber(double value);
// Indented, with a newline at the end.
std::string Print(const Json& json);

}  // namespace moe
