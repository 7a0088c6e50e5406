//! The fleet: DNS servers as processes of their own, with the real servers that people run beside them.

mod dns;
