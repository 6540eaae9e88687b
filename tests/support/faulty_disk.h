// A disk that fails when it is told to, for tests: the calls of the C library by which files are
// written, with faults at the n-th of them, and what a power cut would leave.
//
// The library stands before the C library: a test program that links it has it, and so has any
// program that it is preloaded into (LD_PRELOAD). Only files below one directory are concerned.
// Calls that count are open for writing, write, pwrite, fsync, fdatasync, ftruncate, fallocate,
// rename, link and mkdir, and apart from these the reads. An open, link or fsync that fails has
// done nothing; a short write has written the first half.
//
// A preloaded one reads FAULTY_DISK="DIRECTORY:FAULT@N,FAULT@N,...": FAULT is eio, enospc or short,
// N counts the writing calls of the process from 1. How the disk is meanwhile stands in the file
// that FAULTY_DISK_MOOD names, for all writing calls: `full`, `slow MS` (each takes so much
// longer), or nothing.
//
// What a power cut leaves: of a file what it had at its last fsync, of a directory the names that
// it had at its own; of each that was not synced since by chance the new state or a part of it.
// What was there when the watch began is on the disk.
//
// Any thread. One watch at a time; other calls wait while one looks at the disk.
#pragma once

#include <cstdint>

namespace ps::testing {

enum class DiskFault : int { kNone, kIoError, kNoSpace, kShort };

enum class DiskCall : int { kWriting, kReading };

extern "C" {

// Begins to count, from 1. `root` must be there, absolute and without links.
void FaultyDiskWatch(const char* root);
// At the n-th call of the kind from now on, once; n 0: none.
void FaultyDiskFailAt(ps::testing::DiskCall call, std::uint64_t n, ps::testing::DiskFault fault);
// Calls of the kind since the watch began or since FaultyDiskFailAt().
std::uint64_t FaultyDiskCalls(ps::testing::DiskCall call);
// Before each writing call; it may ask for AfterPowerCut(), and its own calls do not count.
void FaultyDiskBeforeEach(void (*hook)(std::uint64_t n, void* context), void* context);
// Writes what would be left if the power went now below `target`, which must be empty. With the
// chance 0 of 1000 nothing that is not synced is left.
void FaultyDiskAfterPowerCut(const char* target, std::uint64_t seed, std::uint32_t chance);
void FaultyDiskEnd();
}

}  // namespace ps::testing
