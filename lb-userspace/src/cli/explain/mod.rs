//! x
mod capture;
