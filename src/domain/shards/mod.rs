//! Who polls which record: the protocol as arithmetic and state machines.
//! Time is an argument; nothing here reads, writes or waits.
