#include "common/net/this_host.h"

#include <gtest/gtest.h>

namespace ps::net {
namespace {

TEST(ThisHostTest, LoopbackAndLocalTransportsAreHere) {
  EXPECT_TRUE(OnThisHost("tcp://127.0.0.1:7101"));
  EXPECT_TRUE(OnThisHost("tcp://127.3.2.1:7101"));
  EXPECT_TRUE(OnThisHost("tcp://localhost:7101"));
  EXPECT_TRUE(OnThisHost("ipc:///tmp/lane"));
  EXPECT_TRUE(OnThisHost("inproc://lane"));
}

// Addresses that are reserved for documents, which no host has.
TEST(ThisHostTest, OtherAddressesAreElsewhere) {
  EXPECT_FALSE(OnThisHost("tcp://192.0.2.7:7101"));
  EXPECT_FALSE(OnThisHost("tcp://[2001:db8::7]:7101"));
}

TEST(ThisHostTest, OfWhatIsNoAddressNothingIsKnown) {
  for (const char* const endpoint :
       {"tcp://lane.example.org:7101", "tcp://", "tcp://:1", "tcp://*:7101", "tcp://[::1"}) {
    EXPECT_FALSE(OnThisHost(endpoint)) << endpoint;
  }
}

}  // namespace
}  // namespace ps::net
