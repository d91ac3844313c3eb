//! Framed, batched connections between Trefoil's daemons.
