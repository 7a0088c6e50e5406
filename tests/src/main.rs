//! weir's promises, tested where they are made: packets and the oracle against the loaded program, scenarios in the lab,
//! the command line against a running agent. One binary, so that everything links once.
#![cfg(test)]

mod craft;
mod demo;
mod fleet;
mod flow;
mod lab;
mod oracle;
mod packet;
mod store;
