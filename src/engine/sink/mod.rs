//! Couriers: lanes of SMTP and LMTP connections, and their pool.
