// Buffers for answers, used again and again: a lane that has warmed up allocates none.
//
// The lane takes a buffer, fills it and hands it to libzmq, whose I/O thread gives it back once it
// is sent. Take() belongs to one thread; a PooledBuffer may be destroyed on any thread, and after
// the pool's owner is gone: each keeps the pool alive. Spare buffers beyond kSpareBytesMax are
// freed.
//
//   Take() <- spare_ (owner's) <- returned_ (all at once) <- ~PooledBuffer, any thread
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "ps-server/core/byte_buffer.h"

namespace ps::server {

class BufferPool;

class PooledBuffer {
 public:
  PooledBuffer() = default;
  ~PooledBuffer() { Reset(); }
  PooledBuffer(PooledBuffer&& other) noexcept;
  PooledBuffer& operator=(PooledBuffer&& other) noexcept;

  // Gives the buffer back.
  void Reset();

  // Only of one that was taken.
  ByteBuffer& bytes() { return node_->bytes; }

  std::byte* data() const { return node_ != nullptr ? node_->bytes.data() : nullptr; }
  std::size_t size() const { return node_ != nullptr ? node_->bytes.size() : 0; }
  bool empty() const { return size() == 0; }

  // For a C interface: what Detach() gives must come back through Attach().
  void* Detach();
  static PooledBuffer Attach(void* detached);

 private:
  friend class BufferPool;
  struct Node {
    ByteBuffer bytes;
    std::size_t counted = 0;           // of bytes_out()
    std::shared_ptr<BufferPool> home;  // shared: the last buffer on its way outlives the lane
    Node* next = nullptr;
  };

  Node* node_ = nullptr;
};

class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  static constexpr std::size_t kSpareBytesMax = std::size_t{256} << 20;

  static std::shared_ptr<BufferPool> Create() { return std::make_shared<BufferPool>(); }
  ~BufferPool();

  // An empty buffer.
  PooledBuffer Take();

  // The buffer's size counts as on its way until it is given back.
  void CountOut(PooledBuffer& buffer);
  std::size_t bytes_out() const { return bytes_out_.load(std::memory_order_relaxed); }

 private:
  friend class PooledBuffer;
  using Node = PooledBuffer::Node;

  void Return(Node* node);
  static void FreeAll(Node* node);

  Node* spare_ = nullptr;  // owner's thread only

  // Atomic: libzmq's thread gives back while the owner takes. Givers only push and the owner takes
  // the whole list, so no node comes back to a place where it was.
  std::atomic<Node*> returned_{nullptr};
  std::atomic<std::size_t> bytes_out_{0};
  std::atomic<std::size_t> spare_bytes_{0};
};

}  // namespace ps::server
