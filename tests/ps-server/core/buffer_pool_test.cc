#include "ps-server/core/buffer_pool.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace ps::server {
namespace {

TEST(BufferPoolTest, ABufferThatCameBackIsTakenAgainEmptyAndWithItsMemory) {
  const auto pool = BufferPool::Create();
  PooledBuffer first = pool->Take();
  first.bytes().resize(1000);
  const std::byte* const memory = first.data();
  first.Reset();
  PooledBuffer second = pool->Take();
  EXPECT_TRUE(second.empty());
  second.bytes().resize(1000);
  EXPECT_EQ(second.data(), memory);
}

TEST(BufferPoolTest, OnlyCountedBuffersThatAreNotBackYetAreOut) {
  const auto pool = BufferPool::Create();
  PooledBuffer counted = pool->Take();
  counted.bytes().resize(300);
  pool->CountOut(counted);
  PooledBuffer other = pool->Take();
  other.bytes().resize(50);
  EXPECT_EQ(pool->bytes_out(), 300u);
  void* const detached = counted.Detach();
  EXPECT_TRUE(counted.empty());
  EXPECT_EQ(pool->bytes_out(), 300u);
  PooledBuffer::Attach(detached).Reset();
  EXPECT_EQ(pool->bytes_out(), 0u);
}

TEST(BufferPoolTest, ABufferMayOutliveItsPoolsOwner) {
  auto pool = BufferPool::Create();
  const std::weak_ptr<BufferPool> watched = pool;
  PooledBuffer buffer = pool->Take();
  buffer.bytes().resize(10);
  pool.reset();
  EXPECT_FALSE(watched.expired());
  buffer.Reset();
  EXPECT_TRUE(watched.expired());
}

TEST(BufferPoolTest, OtherThreadsMayGiveBackWhileTheOwnerTakes) {
  const auto pool = BufferPool::Create();
  for (int round = 0; round < 200; ++round) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      PooledBuffer buffer = pool->Take();
      buffer.bytes().assign(100, std::byte{7});
      pool->CountOut(buffer);
      threads.emplace_back([held = std::move(buffer)]() mutable { held.Reset(); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(pool->bytes_out(), 0u);
}

}  // namespace
}  // namespace ps::server
