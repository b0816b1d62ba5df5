//! SV2 connections with miners, in virtual time and without IO.

mod custom;
mod devices;
mod handshake;
mod identity;
mod jobs;
mod opening;
mod random;
mod shares;
mod support;
