// How the C library's allocator treats freed memory.
#pragma once

namespace ps::net {

// Large buffers that are freed stay with the process for the next ones. libzmq allocates a buffer
// for each large frame that it receives; by default the C library maps and unmaps such buffers, and
// the kernel clears every page of every frame: a third of the time of a transfer. Call it first in
// main() of a program that moves large frames. What the process held at its busiest it keeps.
void KeepFreedMemory();

}  // namespace ps::net
