#include "ps-server/core/buffer_pool.h"

#include <utility>

namespace ps::server {

PooledBuffer::PooledBuffer(PooledBuffer&& other) noexcept
    : node_(std::exchange(other.node_, nullptr)) {}

PooledBuffer& PooledBuffer::operator=(PooledBuffer&& other) noexcept {
  if (this != &other) {
    Reset();
    node_ = std::exchange(other.node_, nullptr);
  }
  return *this;
}

void PooledBuffer::Reset() {
  if (node_ == nullptr) return;
  Node* const node = std::exchange(node_, nullptr);
  // Out of the node first: it may be the last that holds the pool.
  const std::shared_ptr<BufferPool> home = std::move(node->home);
  home->Return(node);
}

void* PooledBuffer::Detach() { return std::exchange(node_, nullptr); }

PooledBuffer PooledBuffer::Attach(void* detached) {
  PooledBuffer buffer;
  buffer.node_ = static_cast<Node*>(detached);
  return buffer;
}

BufferPool::~BufferPool() {
  FreeAll(spare_);
  FreeAll(returned_.load(std::memory_order_acquire));
}

void BufferPool::FreeAll(Node* node) {
  while (node != nullptr) {
    const std::unique_ptr<Node> freed(node);
    node = node->next;
  }
}

PooledBuffer BufferPool::Take() {
  if (spare_ == nullptr) spare_ = returned_.exchange(nullptr, std::memory_order_acquire);
  PooledBuffer buffer;
  if (spare_ == nullptr) {
    buffer.node_ = std::make_unique<Node>().release();
  } else {
    buffer.node_ = std::exchange(spare_, spare_->next);
    spare_bytes_.fetch_sub(buffer.node_->bytes.capacity(), std::memory_order_relaxed);
    buffer.node_->bytes.clear();
  }
  buffer.node_->home = shared_from_this();
  return buffer;
}

void BufferPool::CountOut(PooledBuffer& buffer) {
  buffer.node_->counted = buffer.size();
  bytes_out_.fetch_add(buffer.size(), std::memory_order_relaxed);
}

void BufferPool::Return(Node* node) {
  bytes_out_.fetch_sub(std::exchange(node->counted, 0), std::memory_order_relaxed);
  const std::size_t bytes = node->bytes.capacity();
  if (spare_bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes > kSpareBytesMax) {
    spare_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
    const std::unique_ptr<Node> freed(node);
    return;
  }
  node->next = returned_.load(std::memory_order_relaxed);
  // Release: what the giver read of the buffer happens before the owner writes to it again.
  while (!returned_.compare_exchange_weak(node->next, node, std::memory_order_release,
                                          std::memory_order_relaxed)) {
  }
}

}  // namespace ps::server
