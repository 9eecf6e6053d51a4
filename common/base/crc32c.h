// CRC-32C (Castagnoli), as iSCSI, ext4 and others use it; by the processor's instruction.
#pragma once

#include <cstdint>
#include <string_view>

namespace moe {

// Of bytes that follow those whose CRC is `before`; 0 before the first.
uint32_t Crc32c(std::string_view bytes, uint32_t before = 0);

}  // namespace moe
