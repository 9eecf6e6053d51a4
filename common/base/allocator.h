#pragma once

namespace moe {

// Makes malloc keep freed memory instead of giving it back to the kernel. Messages of megabytes come
// and go with every step, and touching fresh pages costs more than copying them. Call it first in
// main, before any thread exists.
void KeepFreedMemory();

}  // namespace moe
