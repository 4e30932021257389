import sys

from aigc_ext.data.fetched import main

sys.exit(main(sys.argv[1:]))
