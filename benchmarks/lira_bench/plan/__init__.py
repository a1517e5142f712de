"""Does a LIRA model fit a device, and how fast may it be there: from its graphs and the device's figures."""
