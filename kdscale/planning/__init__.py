"""`kdscale plan`: what a config will take, from a cost model, before anything runs."""
